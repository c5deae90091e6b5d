"""The GPU that these tests have, and the libraries that they have not."""

from __future__ import annotations

import pytest

from sts_export.native import libraries
from tests.backends.onnxruntime.fake_gpu import FakeGpu, fake_gpu


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A GPU whose sessions and tensors are the CPU's."""
    return fake_gpu(monkeypatch)


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has been built or installed on this machine."""
    monkeypatch.setattr(libraries, "own_folders", list)
