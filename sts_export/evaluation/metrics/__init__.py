"""How benchmarks read and score answers."""
