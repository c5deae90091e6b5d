"""Bundles of the three families, which no test may change."""

from tests.support.bundles import bundles, checkpoints

__all__ = ["bundles", "checkpoints"]
