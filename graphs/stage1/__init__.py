"""What several stages before the LLM are built of."""
