"""What runs a bundle: images and prompts in, tokens and text out."""
