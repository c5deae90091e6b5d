"""Fixtures of all tests of the server."""

from __future__ import annotations

from tests.support.mixed_requests import opened
from tests.support.scheduling.gates import gated
from tests.support.scheduling.served import client, served, start

__all__ = ["client", "gated", "opened", "served", "start"]
