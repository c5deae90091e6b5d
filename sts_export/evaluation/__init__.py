"""Bundles asked the questions of a benchmark, and their answers scored as the benchmark does."""
