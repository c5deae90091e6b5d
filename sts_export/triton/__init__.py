"""Bundles on Triton Inference Server: the model repository that is written, and the model that Triton's Python backend runs."""
