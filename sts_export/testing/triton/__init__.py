"""A real Triton server, for tests and benchmarks; scripts/triton_server/fetch brings it."""
