"""Hugging Face checkpoints as files: their configuration, tensors and companions."""
