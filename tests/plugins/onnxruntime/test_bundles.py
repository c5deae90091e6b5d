"""Whole bundles on the CPU: with the library the same tokens are kept and the same are answered as without it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime as ort
import pytest
from PIL.Image import Image

from sts_export import Pipeline
from sts_export.demo.held_out import held_out
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.decoder.parts import FIRST
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    random_prompt,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

pytestmark = pytest.mark.headers
SELECTOR = "selector"
OPERATORS = {SELECTOR: "RepulsionSelect", FIRST: "LastTokenTopK"}
Ask = tuple[str, list[Image]]


@dataclass(frozen=True)
class Example:
    """A checkpoint, how much of it is kept, and what it is asked."""

    checkpoint: Callable[[Path], Any]
    keep: tuple[int, int]
    asks: Callable[[], list[Ask]]
    choices: dict[str, str]


def pictures(*sizes: tuple[int, int]) -> Callable[[], list[Ask]]:
    """One request for each size, and one without a picture."""
    return lambda: [
        *((random_prompt(index), [random_image(index, size)]) for index, size in enumerate(sizes)),
        (random_prompt(9), []),
    ]


def demo_questions() -> list[Ask]:
    asks = []
    for index in range(3):
        images, questions = held_out(index)
        asks.append((questions[0].text, [images[0]]))
    return asks


EXAMPLES = {
    "llava": Example(
        lambda folder: write_random_llava(folder, RandomLlava(seed=3, kv_heads=4)),
        (12, 4),
        pictures((84, 84), (200, 60)),
        {"score_layer": "next"},
    ),
    "llava_next": Example(
        lambda folder: write_random_llava_next(folder, RandomLlavaNext(seed=4)),
        (30, 9),
        pictures((84, 84), (300, 40), (640, 480)),
        {"anchor": "saliency"},
    ),
    "qwen2_5_vl": Example(
        lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(seed=5)), (24, 9), pictures((120, 90), (60, 200)), {}
    ),
    "demo": Example(lambda folder: "demo", (96, 32), demo_questions, {}),
}


@contextlib.contextmanager
def opened(bundle: Path, library: Path | None) -> Iterator[Pipeline]:
    """The bundle on the CPU; all of its sessions register the library, if there is one."""

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            if library is not None:
                self.register_custom_ops_library(str(library))

    with mock.patch.object(ort, "SessionOptions", Options):
        vlm = Pipeline(bundle, threads=1)
    with vlm:
        yield vlm


def runs(vlm: Pipeline, graph: str, operator: str) -> bool:
    """Whether a session has a node of this operator, which it did not replace by a function's nodes."""
    session = vlm._backend._sessions[graph]  # type: ignore[attr-defined]
    nodes = [node for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    return any(node.op_type == operator for node in nodes)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_same_tokens(library: Path, tmp_path: Path, name: str, dtype: str) -> None:
    example = EXAMPLES[name]
    request = ExportRequest(
        str(example.checkpoint(tmp_path / "checkpoint")),
        output=tmp_path / "bundle",
        keep=example.keep,
        choices=example.choices,
        dtype=dtype,
        max_prompt_tokens=200,
        max_new_tokens=12,
    )
    bundle, asks = export(request).folder, example.asks()
    prompts, images = [prompt for prompt, _ in asks], [own for _, own in asks]

    def answers(vlm: Pipeline) -> list[Any]:
        together = vlm.generate(prompts, images, max_new_tokens=8, ignore_eos=True)
        return [(result.kept_stage1, result.kept_stage2, result.token_ids) for result in together]

    with opened(bundle, None) as vlm:
        assert not any(runs(vlm, graph, operator) for graph, operator in OPERATORS.items())
        expected = answers(vlm)
    assert any(kept for kept, _, _ in expected)
    with opened(bundle, library) as vlm:
        assert all(runs(vlm, graph, operator) for graph, operator in OPERATORS.items())
        assert answers(vlm) == expected
