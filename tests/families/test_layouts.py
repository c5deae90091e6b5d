"""Every save of LLaVA-NeXT and Qwen2.5-VL that transformers writes or wrote is covered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sts_export.checkpoints.checkpoint import open_checkpoint
from sts_export.exporting.plan import ExportRequest, plan_capacities, plan_pruning, read_spec
from sts_export.exporting.weights import Coverage, match_weights, parameter_shapes
from sts_export.families import family_of
from sts_export.families.build import build
from sts_export.families.spec import ModelSpec
from sts_export.graphs.model import parameters
from sts_export.testing.checkpoints import RandomLlavaNext, RandomQwen25VL, write_random_llava_next, write_random_qwen2_5_vl

torch.set_num_threads(1)

NEXT_LAYOUTS = ["5.x", "4.x", "memory-4.52", "memory-5.x", "flat"]
QWEN_LAYOUTS = ["5.x", "4.x", "memory-4.52"]
VISION = "vision layers after the feature layer"
Writer = Callable[[Path, Any], Path]
# name: writer, layouts, tensors that no graph uses
CASES: dict[str, tuple[Writer, list[str], dict[str, int]]] = {
    "vicuna": (
        lambda f, layout: write_random_llava_next(f, RandomLlavaNext(layout=layout)),
        NEXT_LAYOUTS,
        {VISION: 18},
    ),
    "mistral": (
        lambda f, layout: write_random_llava_next(f, RandomLlavaNext(layout=layout, decoder="mistral")),
        NEXT_LAYOUTS,
        {VISION: 18},
    ),
    "vicuna-tied": (
        lambda f, layout: write_random_llava_next(f, RandomLlavaNext(layout=layout, tied_embeddings=True)),
        NEXT_LAYOUTS,
        {VISION: 18},
    ),
    "qwen": (
        lambda f, layout: write_random_qwen2_5_vl(f, RandomQwen25VL(layout=layout)),
        QWEN_LAYOUTS,
        {},
    ),
    "qwen-tied": (
        lambda f, layout: write_random_qwen2_5_vl(f, RandomQwen25VL(layout=layout, tied_embeddings=True)),
        QWEN_LAYOUTS,
        {},
    ),
    "qwen-sharded": (
        lambda f, layout: write_random_qwen2_5_vl(f, RandomQwen25VL(layout=layout, max_shard_size="60KB")),
        QWEN_LAYOUTS,
        {},
    ),
}


def coverage_of(folder: Path) -> tuple[Coverage, dict[str, tuple[int, ...]], ModelSpec]:
    """As the exporter does it; the shapes that the graphs ask for; the model."""
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config)
    request = ExportRequest(str(folder), budget="12")
    spec = read_spec(checkpoint)[0]
    pruning = plan_pruning(request, spec)
    graphs = build(spec, family.names, pruning, plan_capacities(request, spec, pruning), "float32")
    shapes = parameter_shapes(graphs.models, parameters)
    coverage = match_weights(shapes, checkpoint, family.canonical_name, lambda name: family.unused_reason(name, spec))
    return coverage, shapes, spec


def content(coverage: Coverage) -> dict[str, bytes]:
    found = {}
    for name, entry in coverage.used.items():
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset)
            found[name] = stream.read(entry.nbytes)
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_layout_is_covered_completely(tmp_path: Path, case: str) -> None:
    write, layouts, unused = CASES[case]
    contents: dict[str, dict[str, bytes]] = {}
    specs: list[ModelSpec] = []
    for layout in layouts:
        folder = write(tmp_path / layout, layout)
        coverage, shapes, spec = coverage_of(folder)
        assert {name: entry.shape for name, entry in coverage.used.items()} == shapes
        assert coverage.unused == unused
        assert len(coverage.used) + sum(unused.values()) == len(open_checkpoint(folder).tensors)
        assert ("image_newline" in shapes) == (spec.family == "llava_next")
        assert any(name.endswith("lm_head.weight") for name in shapes) == ("tied" not in case)
        contents[layout] = content(coverage)
        specs.append(spec)
    # The same seed gives the same weights under other names: each parameter must get the same bytes.
    assert all(found == contents["5.x"] for found in contents.values())
    assert len(set(contents["5.x"].values())) == len(contents["5.x"])
    assert all(spec == specs[0] for spec in specs)  # and the files of every release mean the same model


BUFFERS = {
    "llava_next": ["vision_tower.embeddings.position_ids", "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"],
    "qwen2_5_vl": ["model.layers.0.self_attn.rotary_emb.inv_freq", "visual.rotary_pos_emb.inv_freq"],
}


@pytest.mark.parametrize("model_type", BUFFERS)
def test_known_buffers_have_a_reason(tmp_path: Path, model_type: str) -> None:
    write: Any = write_random_llava_next if model_type == "llava_next" else write_random_qwen2_5_vl
    checkpoint = open_checkpoint(write(tmp_path))
    family = family_of(checkpoint.config)
    spec = read_spec(checkpoint)[0]
    for name in BUFFERS[model_type]:
        for stored in (name, f"model.{name}" if name.startswith(("vision", "visual")) else name):
            reason = family.unused_reason(family.canonical_name(stored), spec)
            assert reason == "buffers computed from the configuration"
    assert family.unused_reason("adapter.weight", spec) is None
