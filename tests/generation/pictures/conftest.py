"""Bundles of one model whose stage 1 follows from different things, opened with and without a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.generation.pictures.methods import METHODS, Cached, Plain
from tests.support.pipelines import Spy


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """Of a method, without a cache."""
    base = tmp_path_factory.mktemp("pictures")
    checkpoint = write_random_llava(base / "checkpoint", RandomLlava())
    capacities: dict[str, Any] = {"max_prompt_tokens": 60, "max_new_tokens": 12, "max_visual_tokens": 72}

    @cache
    def pipeline(name: str) -> Pipeline:
        request = ExportRequest(str(checkpoint), Path(base / name), **capacities, **METHODS[name])
        return Pipeline(export(request).folder, threads=1)

    return pipeline


@pytest.fixture
def cached(plain: Plain) -> Iterator[Cached]:
    """A fresh pipeline of a method, with a cache and a spy."""
    with ExitStack() as stack:

        def pipeline(name: str, most_bytes: int = 1 << 24) -> tuple[Pipeline, Spy]:
            vlm = stack.enter_context(Pipeline(plain(name).bundle.folder, threads=1, feature_cache=most_bytes))
            return vlm, Spy.on(vlm)

        yield pipeline
