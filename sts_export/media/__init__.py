"""Pictures, and what a vision tower takes of them."""
