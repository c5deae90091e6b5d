"""Fixtures of the tests of the benchmark of servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.benchmarks.serving.echo import Serve, echoing


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Address of a server of the model that it is given."""
    with ExitStack() as stack:
        yield lambda model: stack.enter_context(echoing(model))
