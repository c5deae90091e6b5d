"""Pictures before the decoder: the vision encoder, stage 1, and what is known of both."""
