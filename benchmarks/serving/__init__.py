"""A served bundle under load."""
