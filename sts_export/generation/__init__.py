"""From requests to answers: prefill, decode, sampling, stopping."""
