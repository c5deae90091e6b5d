"""The graphs of real bundles in TensorRT for RTX, which parses and builds without a GPU; nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.bundle import GRAPHS, Bundle
from sts_export.exporter import ExportRequest, export
from tests.checkpoints import RandomLlava, write_random_llava

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")

from tests.tensorrt_rtx import build, describe, parse, profiles  # needs tensorrt_rtx

TEXT, NEW = 48, 16
DTYPES = ("float32", "float16", "bfloat16")
# name -> checkpoint, and choices of the pruning.  In 16 bits attention must find a fused kernel; there is none for heads of
# 8 dimensions, nor for a decoder of 2 heads in decode, which no real model has.
VARIANTS = {
    "grouped": (RandomLlava(vision_width=64), {"score_layer": "own", "anchor": "mean"}),
    "plain": (
        RandomLlava(seed=1, vision_width=64, kv_heads=4, layers=3, tied_embeddings=True, attention_bias=True, mlp_bias=True),
        {"score_layer": "next", "anchor": "saliency", "positions": "keep"},
    ),
    # The head sizes of CLIP-L and Llama-7B.
    "real_heads": (
        RandomLlava(seed=2, vision_width=128, vision_heads=2, heads=4, kv_heads=1, head_dim=128, width=128, layers=3),
        {"score_layer": "next", "anchor": "first"},
    ),
}


@pytest.fixture(scope="module", params=[f"{name}-{dtype}" for name in VARIANTS for dtype in DTYPES])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Weights are copied: TensorRT takes external weights from the graph's own folder only."""
    name, _, dtype = request.param.partition("-")
    spec, choices = VARIANTS[name]
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write_random_llava(folder / "checkpoint", spec)
    return export(
        ExportRequest(
            str(checkpoint),
            output=folder / "bundle",
            keep=(12, 5),
            choices=choices,
            dtype=dtype,
            max_prompt_tokens=TEXT,
            max_new_tokens=NEW,
        )
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_parses_and_builds(bundle: Bundle, name: str) -> None:
    manifest = bundle.manifest
    contract, pruning, decoder = manifest.graphs[name], manifest.pruning, manifest.model.decoder
    parsed = parse(bundle.graph_file(name), decomposable=manifest.dtype == "float32")

    assert tuple(map(describe, parsed.inputs)) == contract.inputs
    assert [tensor.name for tensor in parsed.outputs] == [spec.name for spec in contract.outputs]
    assert [describe(tensor).dtype for tensor in parsed.outputs] == [spec.dtype for spec in contract.outputs]
    unused = [tensor.name for tensor in parsed.inputs if not parsed.reachable_outputs(tensor.name)]
    assert not unused

    layers = {
        "vision_encoder": manifest.model.vision.feature_layers,
        "selector": 0,
        "llm_lower": pruning.prune_layer,
        "llm_upper": decoder.num_layers - pruning.prune_layer,
    }[name]
    kinds = parsed.count()
    assert kinds["ATTENTION_INPUT"] == kinds["ATTENTION_OUTPUT"] == layers
    if name.startswith("llm"):
        # The parser aligns a causal mask upper-left, which is wrong in decode: each needs the explicit one.
        assert parsed.masked("write_index") == [True] * layers
    # One in-place update per cache, between the very tensors that the runtime binds to one buffer.
    assert sorted(parsed.cache_updates()) == sorted(contract.caches)
    assert kinds["KV_CACHE_UPDATE"] == (2 * layers if name.startswith("llm") else 0)
    assert kinds["TRIP_LIMIT"] == (name == "selector")  # the greedy loop stays one loop
    assert not any(kind.startswith("PLUGIN") for kind in kinds)

    engine = build(parsed, profiles(contract, pruning.keep_stage1, pruning.keep_stage2, TEXT))
    assert len(engine) > 1000


def test_outputs_depend_on_what_they_must(bundle: Bundle) -> None:
    """A parser that ignores an input (as TensorRT's does with some of Attention's) would cut these paths."""
    lower = parse(bundle.graph_file("llm_lower"))
    for name in ("input_ids", "visual_embeds", "position_ids", "attention_mask", "key_cache.0", "value_cache.0"):
        assert "hidden_states" in lower.reachable_outputs(name), name
    for name in ("input_ids", "visual_embeds", "position_ids", "attention_mask"):
        assert {"kept_rows", "kept_position_ids", "last_row"} <= lower.reachable_outputs(name), name
    # Where rows are written decides what they attend to.
    assert {"hidden_states", "key_cache_out.0", "value_cache_out.0"} <= lower.reachable_outputs("write_index")
    upper = parse(bundle.graph_file("llm_upper"))
    for tensor in upper.inputs:
        assert "logits" in upper.reachable_outputs(tensor.name), tensor.name


def test_identity_selector(tmp_path: Path) -> None:
    """K = N: no selection at all, and still a graph that TensorRT takes."""
    checkpoint = write_random_llava(tmp_path / "checkpoint")
    request = ExportRequest(str(checkpoint), output=tmp_path / "bundle", keep=(36, 36), dtype="float16")
    bundle = export(request)
    contract = bundle.manifest.graphs["selector"]
    parsed = parse(bundle.graph_file("selector"))
    assert parsed.count()["TOPK"] == 0
    assert [tensor.name for tensor in parsed.outputs] == ["kept_index", "visual_embeds"]
    assert build(parsed, profiles(contract, 36, 36, TEXT))
