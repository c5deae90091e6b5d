"""How long it has been, and how long it may still take."""

from __future__ import annotations

import sys
import time


class Clock:
    """Says what happens, with the seconds since the start, and knows when there is no time left.

    Args:
        limit_s: seconds that everything together may take.
    """

    def __init__(self, limit_s: float) -> None:
        self._started = time.monotonic()
        self._limit_s = limit_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def remaining_s(self) -> float:
        """At least 0."""
        return max(0.0, self._limit_s - self.elapsed_s)

    def say(self, text: str) -> None:
        """One line on stderr, at once."""
        print(f"[{self.elapsed_s:7.1f} s] {text}", file=sys.stderr, flush=True)
