"""What the machine that is prepared for takes, and what a rehearsal holds every step to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one call.

    Args:
        brought: bytes of the source tree and the carried folder together.
        seconds: that a command may run.
        characters: of a command.
        files: that come back.
        file_bytes: of each of them.
        all_bytes: of all of them.
        folders: how deep they may lie.
    """

    brought: int = 64 << 20
    seconds: float = 600.0
    characters: int = 2000
    files: int = 8
    file_bytes: int = 16 << 20
    all_bytes: int = 64 << 20
    folders: int = 2


LIMITS = Limits()
MARGIN = 1 << 20  # bytes that the tree may still grow by after the parts were cut
