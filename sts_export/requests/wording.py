"""Values in messages of one line."""

from __future__ import annotations


def short(value: object, most: int = 80) -> str:
    """``repr`` without line breaks, cut after ``most`` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."
