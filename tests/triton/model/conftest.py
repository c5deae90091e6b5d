"""Fixtures of the model's tests without a server."""

from __future__ import annotations

from tests.support.mixed_requests import opened
from tests.support.scheduling.gates import gated

__all__ = ["gated", "opened"]
