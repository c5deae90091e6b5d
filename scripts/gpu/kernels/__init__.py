"""The parts that check, time and sanitize the kernels."""
