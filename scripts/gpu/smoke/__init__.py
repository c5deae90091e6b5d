"""The part that shows whether a GPU computes what the CPU does, on the demo model."""
