"""Requests that have little in common, bundles of all families that answer them, and what has to be the same of two answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.result import GenerationResult
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

NEW = 12
Family = tuple[Callable[[Path], Path], dict[str, Any]]
FAMILIES: dict[str, Family] = {
    "llava": (lambda f: write_random_llava(f, RandomLlava()), {"budget": "8", "max_visual_tokens": 72}),
    "llava_next": (
        lambda f: write_random_llava_next(f, RandomLlavaNext(seed=2)),
        {"budget": "30%", "max_visual_tokens": 360},
    ),
    "qwen": (lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL()), {"budget": "30%", "max_visual_tokens": 250}),
    "qwen-reindex": (
        lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL(seed=3)),
        {"keep": (20, 9), "max_visual_tokens": 250, "choices": {"positions": "reindex"}},
    ),
}
QUANTIZED: dict[str, Family] = {
    f"{name}-int8": (write, {**options, "quantize": "int8"})
    for name, (write, options) in FAMILIES.items()
    if name != "qwen-reindex"
}
Opened = Callable[[str], Pipeline]


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    @cache
    def pipeline(name: str) -> Pipeline:
        folder = tmp_path_factory.mktemp(name)
        write, options = {**FAMILIES, **QUANTIZED}[name]
        request = ExportRequest(
            str(write(folder / "checkpoint")), folder / "bundle", max_prompt_tokens=150, max_new_tokens=NEW, **options
        )
        return Pipeline(export(request).folder, threads=1)

    return pipeline


WIDE, TALL, SQUARE = random_image(1, (210, 80)), random_image(2, (70, 180)), random_image(3, (120, 120))
REQUESTS: list[tuple[Any, Any]] = [
    ("What is on the table?", WIDE),
    ("Where?", [WIDE]),
    ("How many cats are in the picture, and what is on the table in the picture of the cat?", SQUARE),
    ("Describe the text.", None),
    ("What?", TALL),
    ([{"role": "user", "content": "Only text, as messages, and somewhat longer than the other one."}], []),
    ("Which is larger?", [SQUARE, WIDE]),
    ("The other way round: which is the larger one of the two?", (WIDE, SQUARE)),
]
PROMPTS, IMAGES = [list(column) for column in zip(*REQUESTS, strict=True)]


def without_times(result: GenerationResult) -> dict[str, Any]:
    return {name: value for name, value in asdict(result).items() if name != "timings_ms"}


def alone(pipeline: Pipeline, **settings: Any) -> list[GenerationResult]:
    return [pipeline.generate(prompt, () if images is None else images, **settings) for prompt, images in REQUESTS]


def same(batch: Sequence[GenerationResult], single: Sequence[GenerationResult]) -> None:
    for index, (one, other) in enumerate(zip(batch, single, strict=True)):
        assert without_times(one) == without_times(other), index
