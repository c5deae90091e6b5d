"""What a run says at its end: tables, failures, and timings beside their limits."""
