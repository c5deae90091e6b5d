"""Bundles, which no test may change."""

from tests.evaluation.conftest import bundles

__all__ = ["bundles"]
