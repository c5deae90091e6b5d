"""A random LLaVA-1.5, its bundle and a pipeline, opened once; tests that spy on the backend get a pipeline of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sts_export import Pipeline
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.pipelines import LAYERS, Spy, export_to

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llava(tmp_path_factory.mktemp("runtime") / "checkpoint", RandomLlava(layers=LAYERS))


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Path:
    return export_to(checkpoint, checkpoint.parent / "bundle")


@pytest.fixture(scope="session")
def vlm(bundle: Path) -> Pipeline:
    return Pipeline(bundle, threads=1)


@pytest.fixture
def spied(bundle: Path) -> tuple[Pipeline, Spy]:
    """A fresh pipeline whose backend is watched."""
    pipeline = Pipeline(bundle, threads=1)
    return pipeline, Spy.on(pipeline)
