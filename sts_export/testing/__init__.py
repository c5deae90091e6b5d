"""Checkpoints and fakes of engines, for tests, benchmarks and scripts."""
