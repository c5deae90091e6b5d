"""The graphs of real bundles in TensorRT for RTX, which parses and builds without a GPU; nothing is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.checkpoints.safetensors_header import read_header
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.exporting.weights import bind
from sts_export.families import llava
from sts_export.families.build import build as build_graphs
from sts_export.families.capacities import Capacities
from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.model import parameters
from sts_export.graphs.selector import selector
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.stage1.repulsion import Repulsion
from sts_export.tensorrt.profiles import Profile
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from sts_export.testing.public_models import PUBLIC_MODELS, write_sparse_checkpoint

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")

from tests.support.bundles import GRAPHS
from tests.support.tensorrt_rtx import build, describe, parse, profiles  # needs tensorrt_rtx

TEXT, NEW = 48, 16
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
# name -> checkpoint, and choices of the pruning.  In 16 bits attention must find a fused kernel; there is none for heads of
# 8 dimensions, nor for a decoder of 2 heads in decode, which no real model has.
VARIANTS: dict[str, tuple[RandomLlava | RandomLlavaNext | RandomQwen25VL, dict[str, Any]]] = {
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
    "next_vicuna": (RandomLlavaNext(vision_width=64, kv_heads=4, layers=3), {"anchor": "saliency"}),
    "next_mistral": (
        RandomLlavaNext(seed=1, decoder="mistral", vision_width=64, layers=3),
        {"score_layer": "next", "positions": "keep", "anchor": "first"},
    ),
    "qwen": (RandomQwen25VL(vision_width=64, vision_heads=4), {"anchor": "first"}),
    # The head sizes of Qwen2.5-VL's tower and decoder.
    "qwen_real_heads": (
        RandomQwen25VL(
            seed=1,
            vision_width=160,
            vision_layers=2,
            fullatt_block_indexes=(1,),
            kv_heads=1,
            head_dim=128,
            mrope_section=(16, 24, 24),
            layers=3,
            tied_embeddings=True,
        ),
        {"score_layer": "next", "positions": "reindex"},
    ),
}


def write_checkpoint(folder: Path, spec: RandomLlava | RandomLlavaNext | RandomQwen25VL) -> Path:
    if isinstance(spec, RandomQwen25VL):
        return write_random_qwen2_5_vl(folder, spec)
    return write_random_llava_next(folder, spec) if isinstance(spec, RandomLlavaNext) else write_random_llava(folder, spec)


@pytest.fixture(scope="module", params=[f"{name}-{dtype}" for name in VARIANTS for dtype in DTYPES])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Weights are copied: TensorRT takes external weights from the graph's own folder only."""
    name, _, dtype = request.param.partition("-")
    spec, choices = VARIANTS[name]
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write_checkpoint(folder / "checkpoint", spec)
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


def window_layers(spec: ModelSpec) -> list[bool]:
    """Of every layer of the vision tower: does it attend to windows?"""
    if isinstance(spec.vision, QwenVisionConfig):
        return [layer not in spec.vision.full_attention_layers for layer in range(spec.vision.num_layers)]
    assert isinstance(spec.vision, ClipVisionConfig)
    return [False] * spec.vision.feature_layers


@pytest.mark.parametrize("name", GRAPHS)
def test_parses_and_builds(bundle: Bundle, name: str) -> None:
    manifest = bundle.manifest
    contract, pruning, decoder = manifest.graphs[name], manifest.pruning, manifest.model.decoder
    parsed = parse(bundle.graph_file(name), decomposable=manifest.dtype == "float32")

    assert tuple(map(describe, parsed.inputs)) == contract.inputs
    assert [tensor.name for tensor in parsed.outputs] == [spec.name for spec in contract.outputs]
    assert [describe(tensor).dtype for tensor in parsed.outputs] == [spec.dtype for spec in contract.outputs]
    for tensor, spec in zip(parsed.outputs, contract.outputs, strict=True):  # a size it infers is the declared one
        assert all(
            found in (-1, size) or isinstance(size, str) for found, size in zip(tuple(tensor.shape), spec.shape, strict=True)
        )
    unused = [tensor.name for tensor in parsed.inputs if not parsed.reachable_outputs(tensor.name)]
    assert not unused

    windows = window_layers(manifest.model)
    layers = {
        "vision_encoder": len(windows),
        "selector": 0,
        "llm_lower": pruning.prune_layer,
        "llm_upper": decoder.num_layers - pruning.prune_layer,
    }[name]
    kinds = parsed.count()
    assert kinds["ATTENTION_INPUT"] == kinds["ATTENTION_OUTPUT"] == layers
    if name.startswith("llm"):
        # The parser aligns a causal mask upper-left, which is wrong in decode: each needs the explicit one.
        assert parsed.masked("write_index") == [True] * layers
    if any(windows) and name == "vision_encoder":
        assert parsed.masked("window_mask") == windows
    # One in-place update per cache, between the very tensors that the runtime binds to one buffer.
    assert sorted(parsed.cache_updates()) == sorted(contract.caches)
    assert kinds["KV_CACHE_UPDATE"] == (2 * layers if name.startswith("llm") else 0)
    assert kinds["TRIP_LIMIT"] == (name == "selector")  # the greedy loop stays one loop
    assert not any(kind.startswith("PLUGIN") for kind in kinds)

    engine = build(parsed, profiles(manifest, name))
    assert len(engine) > 1000


def test_outputs_depend_on_what_they_must(bundle: Bundle) -> None:
    """A parser that ignores an input (as TensorRT's does with some of Attention's) would cut these paths."""
    selector = parse(bundle.graph_file("selector"))
    for tensor in selector.inputs:
        assert selector.reachable_outputs(tensor.name) == {"kept_index", "visual_embeds"}, tensor.name
    lower = parse(bundle.graph_file("llm_lower"))
    decisive = ("input_ids", "visual_embeds", "position_ids", "attention_mask", "stage2_slots")
    for name in (*decisive, "key_cache.0", "value_cache.0"):
        assert "hidden_states" in lower.reachable_outputs(name), name
    for name in decisive:
        assert {"kept_rows", "kept_position_ids", "last_row"} <= lower.reachable_outputs(name), name
    # Where rows are written decides what they attend to.
    assert {"hidden_states", "key_cache_out.0", "value_cache_out.0"} <= lower.reachable_outputs("write_index")
    upper = parse(bundle.graph_file("llm_upper"))
    for tensor in upper.inputs:
        assert "logits" in upper.reachable_outputs(tensor.name), tensor.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_selector_of_very_large_pictures(dtype: Dtype, tmp_path: Path) -> None:
    """Stage 1 by row, for more rows than bundles of this size have."""
    sizes: dict[str, Any] = {"hidden_size": 16, "width": 16, "max_crops": 1, "max_rows": 16384}
    features = TensorSpec("visual_features", (1, "tokens", 16), dtype)
    graph = selector([features], None, dtype, prefix="p", stage1=Repulsion().build, **sizes)
    (tmp_path / "selector.onnx").write_bytes(ir.to_proto(graph).SerializeToString())
    parsed = parse(tmp_path / "selector.onnx")
    assert parsed.count()["TRIP_LIMIT"] == 1
    assert build(parsed, [{"tokens": (1, 1024, 16384), "crops": (1, 1, 1), "steps": (1, 100, 3276)}])


@pytest.mark.parametrize("name", ["grouped", "next_vicuna", "qwen"])
def test_identity_selector(name: str, tmp_path: Path) -> None:
    """K = N: no selection at all, and still a graph that TensorRT takes."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", VARIANTS[name][0])
    tokens = {"grouped": 36, "next_vicuna": 5 * 36, "qwen": 126}[name]
    request = ExportRequest(str(checkpoint), output=tmp_path / "bundle", keep=(tokens, tokens), dtype="float16")
    bundle = export(request)
    assert bundle.manifest.pruning.keep_stage2 == bundle.manifest.pruning.num_visual_tokens
    parsed = parse(bundle.graph_file("selector"))
    assert parsed.count()["TOPK"] == parsed.count()["TRIP_LIMIT"] == 0
    assert [tensor.name for tensor in parsed.outputs] == ["kept_index", "visual_embeds"]
    assert build(parsed, profiles(bundle.manifest, "selector"))


@pytest.mark.parametrize("name", ["grouped", "qwen"])
def test_identity_stage2(name: str, tmp_path: Path) -> None:
    """K' = K without a score: every row goes on, and the graph keeps its inputs."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", VARIANTS[name][0])
    request = ExportRequest(str(checkpoint), output=tmp_path / "bundle", keep=(12, 12), stage2="keep-all", dtype="float16")
    bundle = export(request)
    parsed = parse(bundle.graph_file("llm_lower"))
    contract = bundle.manifest.graphs["llm_lower"]
    assert parsed.count()["TOPK"] == 0
    assert tuple(map(describe, parsed.inputs)) == contract.inputs
    assert [tensor.name for tensor in parsed.outputs] == [spec.name for spec in contract.outputs]
    assert build(parsed, profiles(bundle.manifest, "llm_lower"))


@pytest.mark.parametrize("name", ["llm_lower", "llm_upper"])
def test_layers_of_full_size(name: str, tmp_path: Path) -> None:
    """LLaVA-1.5-7B with two decoder layers, one on either side of stage 2.  Slow: 0.67 GB of (zero) weights a graph."""
    model = "llava-hf/llava-1.5-7b-hf"
    file = write_sparse_checkpoint(tmp_path, model, shards=1) / "model.safetensors"
    config = PUBLIC_MODELS[model].config
    spec = llava.parse({**config, "text_config": {**config["text_config"], "num_hidden_layers": 2}}, {})
    decoder = spec.decoder
    assert (decoder.hidden_size, decoder.num_heads, decoder.intermediate_size, decoder.vocab_size) == (4096, 32, 11008, 32064)
    pruning = PruningConfig(spec.max_image_tokens, num_layers=2, prune_layer=1, keep_stage1=96, keep_stage2=32)
    capacities = Capacities.plan(spec, pruning, prompt_tokens=512, new_tokens=512, visual_tokens=0)
    graph = build_graphs(spec, llava.NAMES, pruning, capacities, "float16").models[name]
    weights = parameters(graph)
    bind(weights, read_header(file)[0])
    (tmp_path / f"{name}.onnx").write_bytes(ir.to_proto(graph).SerializeToString())
    parsed = parse(tmp_path / f"{name}.onnx")
    kinds = parsed.count()
    assert (kinds["ATTENTION_INPUT"], kinds["KV_CACHE_UPDATE"]) == (1, 2)
    prefill: Profile = {
        "batch": (1, 1, 1),
        "sequence": (1, 160, 608),
        "visual": (1, 96, 96),
        "visual_keep": (1, 32, 32),
        "survivors": (1, 96, 544),
    }
    engine = build(parsed, [prefill, dict.fromkeys(prefill, (1, 1, 1))])
    assert len(engine) > sum(weight.const_value.nbytes for weight in weights) > 600_000_000
