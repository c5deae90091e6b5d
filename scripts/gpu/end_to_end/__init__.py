"""The part that times whole requests."""
