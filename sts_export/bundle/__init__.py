"""The bundle: its manifest, and what it says in words."""
