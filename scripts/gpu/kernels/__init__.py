"""The part that checks and times the kernels."""
