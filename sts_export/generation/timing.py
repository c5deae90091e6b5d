"""Time that has passed, in milliseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass


def milliseconds_since(start: float) -> float:
    """Since ``start``, which time.perf_counter() was."""
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class PictureTimes:
    """Milliseconds for pictures before the decoder.

    Args:
        vision, select: that passed for features, and for the choice among them.
        vision_saved, select_saved: that they took when they were computed which were found now.
    """

    vision: float = 0.0
    select: float = 0.0
    vision_saved: float = 0.0
    select_saved: float = 0.0

    def __add__(self, other: PictureTimes) -> PictureTimes:
        return PictureTimes(
            self.vision + other.vision,
            self.select + other.select,
            self.vision_saved + other.vision_saved,
            self.select_saved + other.select_saved,
        )

    def saved(self) -> PictureTimes:
        """Of whom finds what took these."""
        return PictureTimes(vision_saved=self.vision + self.vision_saved, select_saved=self.select + self.select_saved)
