"""What tests of contenders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Transformers' contenders change their number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
