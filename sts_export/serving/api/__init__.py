"""OpenAI's API: bodies in, the scheduler's answers out."""
