"""LoRA adapters in peft's format: read beside or instead of a checkpoint, and merged into its weights while they are copied."""
