"""The bundles that these tests share."""

from tests.support.mixed_requests import opened

__all__ = ["opened"]
