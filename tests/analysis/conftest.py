"""Bundles of the three families, which no test may change."""

from tests.support.bundles import bundle, bundles, checkpoints

__all__ = ["bundle", "bundles", "checkpoints"]
