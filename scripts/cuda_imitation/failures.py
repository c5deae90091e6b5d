"""What stands in the way of counting."""

from __future__ import annotations


class ImitationError(Exception):
    """One line: what is absent or failed, and what to do."""
