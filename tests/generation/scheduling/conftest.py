"""Bundles of one model, pruned in ways that differ in what the choice depends on."""

from __future__ import annotations

from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.generation.scheduling.chats import METHODS, Folders, Open
from tests.support.pipelines import Spy


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    base = tmp_path_factory.mktemp("prefixes")
    checkpoint = write_random_llava(base / "checkpoint", RandomLlava())
    made: dict[str, Any] = {}

    def folder(name: str) -> Any:
        if name not in made:
            capacities: dict[str, Any] = {"max_prompt_tokens": 150, "max_new_tokens": 24, "max_visual_tokens": 72}
            made[name] = export(ExportRequest(str(checkpoint), base / name, **capacities, **METHODS[name])).folder
        return made[name]

    return folder


@pytest.fixture(scope="session")
def of_method(folders: Folders) -> Open:
    made: dict[str, Pipeline] = {}

    def pipeline(name: str) -> Pipeline:
        if name not in made:
            made[name] = Pipeline(folders(name), threads=1)
        return made[name]

    return pipeline


@pytest.fixture
def watched(folders: Folders) -> tuple[Pipeline, Spy]:
    pipeline = Pipeline(folders("sts"), threads=1)
    return pipeline, Spy.on(pipeline)
