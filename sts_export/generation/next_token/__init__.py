"""What is made of the logits of one next token, beside the token itself."""
