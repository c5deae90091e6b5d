"""Checks, timings and end-to-end comparisons for a machine with a CUDA GPU: README.md here, entry point ``run``."""
