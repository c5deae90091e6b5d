"""Fixtures of all tests with a real Triton server."""

from __future__ import annotations

from tests.support.triton.home import triton_home

__all__ = ["triton_home"]
