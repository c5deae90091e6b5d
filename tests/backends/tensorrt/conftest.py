"""A bundle of two images and its TensorRT backend on fakes, in every flavour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sts_export import Pipeline
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.pipelines import LAYERS, export_to
from tests.support.tensorrt_backend import FLAVOURS, Opened, check_nothing_left, open_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("tensorrt")
    checkpoint = write_random_llava(base / "checkpoint", RandomLlava(seed=60, layers=LAYERS))
    return export_to(checkpoint, base / "bundle", max_visual_tokens=72)  # two images


@pytest.fixture(scope="module")
def expected(folder: Path) -> Pipeline:
    """The same bundle on ONNX Runtime."""
    return Pipeline(folder, threads=1)


@pytest.fixture(params=FLAVOURS, ids=str)
def opened(folder: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Nothing may be left of a test, and nothing may have been misused."""
    made = open_on(folder, request.param)
    yield made
    made.backend.close()
    check_nothing_left(made.device)
