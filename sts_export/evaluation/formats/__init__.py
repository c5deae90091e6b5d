"""Files of benchmarks, read as they are published."""
