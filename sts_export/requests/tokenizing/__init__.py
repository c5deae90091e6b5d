"""Around a tokenizer: places of images in a text, and how few tokens a text can have."""
