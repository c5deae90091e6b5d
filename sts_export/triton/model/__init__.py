"""The model that Triton's Python backend runs: a scheduler behind tensors."""
