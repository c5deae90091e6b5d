"""Speed and memory of bundles."""
