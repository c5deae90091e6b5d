"""Checkpoint tensors -> graph parameters: coverage, refusals, conversions bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sts_export.checkpoints.checkpoint import image_processor_settings, open_checkpoint
from sts_export.checkpoints.safetensors_header import TensorEntry, read_header
from sts_export.errors import CheckpointError, OutputError
from sts_export.exporting.plan import ExportRequest, plan_capacities, plan_pruning
from sts_export.exporting.weights import (
    COPY_FILE,
    Coverage,
    copied_size,
    copy_weights,
    link_weights,
    match_weights,
    parameter_shapes,
    stored_dtype,
)
from sts_export.families import family_of
from sts_export.families.build import build
from sts_export.graphs.model import parameters
from sts_export.testing.checkpoints import RandomLlava, write_random_llava

torch.set_num_threads(1)

LAYOUTS: list[Any] = ["5.x", "4.x", "memory-4.52", "memory-5.x", "flat"]
Tensors = dict[str, torch.Tensor]


def coverage_of(folder: Path) -> tuple[Coverage, dict[str, tuple[int, ...]]]:
    """As the exporter does it, and the shapes that the graphs ask for."""
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config)
    spec = family.parse(checkpoint.config, image_processor_settings(folder)[0])
    request = ExportRequest(str(folder), budget="12")
    pruning = plan_pruning(request, spec)
    graphs = build(spec, family.names, pruning, plan_capacities(request, spec, pruning), "float32")
    shapes = parameter_shapes(graphs.models, parameters)
    coverage = match_weights(shapes, checkpoint, family.canonical_name, lambda name: family.unused_reason(name, spec))
    return coverage, shapes


def read(entry: TensorEntry) -> bytes:
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        return stream.read(entry.nbytes)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "sharded": {"max_shard_size": "60KB"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_is_covered_completely(tmp_path: Path, variant: str) -> None:
    contents: dict[str, dict[str, bytes]] = {}
    for layout in LAYOUTS:
        folder = write_random_llava(tmp_path / layout, RandomLlava(layout=layout, **VARIANTS[variant]))
        coverage, shapes = coverage_of(folder)
        stored = open_checkpoint(folder).tensors
        assert {name: entry.shape for name, entry in coverage.used.items()} == shapes
        assert len(coverage.used) + sum(coverage.unused.values()) == len(stored)
        # The last of three vision layers (16 tensors) and the norm after it are never used.
        assert coverage.unused == {"vision layers after the feature layer": 18}
        assert len({(entry.file, entry.offset) for entry in coverage.used.values()}) == len(shapes)
        contents[layout] = {name: read(entry) for name, entry in coverage.used.items()}
    decoder_names = [name for name in shapes if ".layers." in name and name.startswith("language_model")]
    assert len(decoder_names) == 4 * (16 if variant == "biased" else 9)
    assert ("language_model.lm_head.weight" in shapes) == (variant != "tied")
    # The same seed gives the same weights under other names: each parameter must get the same bytes.
    assert len(set(contents["5.x"].values())) == len(shapes)
    assert all(content == contents["5.x"] for content in contents.values())


NORM = "language_model.model.layers.1.input_layernorm.weight"
KEY = "language_model.model.layers.0.self_attn.k_proj.weight"


def swap(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


MISMATCHES: dict[str, tuple[Callable[[Tensors], object], list[str]]] = {
    "missing-tensor": (lambda t: t.pop(NORM), ["the checkpoint lacks", NORM]),
    "missing-head": (lambda t: t.pop("language_model.lm_head.weight"), ["lacks", "language_model.lm_head.weight"]),
    "missing-many": (
        lambda t: [t.pop(name) for name in list(t) if ".layers.2." in name and "language" in name],
        ["lacks", "and 3 more"],
    ),
    "unknown-tensor": (
        lambda t: t.update({"language_model.model.layers.0.self_attn.q_norm.weight": torch.ones(16)}),
        ["would not use", "q_norm"],
    ),
    "layer-too-many": (
        lambda t: t.update({NORM.replace(".1.", ".4."): torch.ones(48)}),
        ["would not use", "layers.4.input_layernorm"],
    ),
    "wrong-shape": (swap(KEY, lambda w: w[:16].clone()), ["wrong shape", f"{KEY} is [16, 48] instead of [32, 48]"]),
    "transposed": (swap(KEY, lambda w: w.T.contiguous()), [f"{KEY} is [48, 32] instead of [32, 48]"]),
    "wrong-rank": (swap(NORM, lambda w: w[None].clone()), [f"{NORM} is [1, 48] instead of [48]"]),
    "mixed-layouts": (
        lambda t: t.update({"model." + NORM.replace(".model.", "."): t[NORM].clone()}),
        ["mixes two layouts", NORM],
    ),
    "stored-int8": (swap(KEY, lambda w: w.to(torch.int8)), ["unsupported stored type", f"{KEY} (I8)"]),
    "stored-fp8": (swap(KEY, lambda w: w.to(torch.float8_e4m3fn)), ["unsupported stored type", f"{KEY} (F8_E4M3)"]),
    "stored-fp64": (swap(NORM, lambda w: w.double()), ["unsupported stored type", f"{NORM} (F64)"]),
}


@pytest.mark.parametrize(("change", "expected"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_mismatches_are_named(tmp_path: Path, change: Callable[[Tensors], object], expected: list[str]) -> None:
    folder = write_random_llava(tmp_path)
    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        coverage_of(folder)
    message = str(caught.value)
    assert all(text in message for text in expected) and "\n" not in message, message
    assert len(message) < 700


def test_known_buffers_are_not_in_the_way(tmp_path: Path) -> None:
    folder = write_random_llava(tmp_path)
    buffers = {
        "vision_tower.embeddings.position_ids": torch.arange(37)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    rewrite(folder, lambda tensors: tensors.update(buffers))
    assert coverage_of(folder)[0].unused["buffers computed from the configuration"] == 2


# --- conversions -----------------------------------------------------------------------------------------------------

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def values(dtype: str) -> torch.Tensor:
    """Every bit pattern of a 16-bit type, or as many hard ones in 32 bits: ties, subnormals, zeros, infinities."""
    if dtype != "float32":
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(TORCH[dtype])
        return every[~every.isnan()]
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint64).astype(np.uint32)
    wide = torch.from_numpy(patterns.view(np.int32)).view(torch.float32)
    near_halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    # Halfway between neighbours in float16 and bfloat16, and just beside.
    ties = near_halves * (1 + 2.0**-11)
    bits = torch.cat([wide, near_halves, ties, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45])])
    return bits[~bits.isnan()]


def holdable(source: torch.Tensor, goal: str) -> torch.Tensor:
    """Those that ``goal`` does not turn from finite into infinite."""
    return source[source.isinf() | source.to(TORCH[goal]).isfinite()]


def one_tensor(folder: Path, tensor: torch.Tensor) -> Coverage:
    file = folder / "source.safetensors"
    save_file({"w": tensor}, file)
    return Coverage(read_header(file)[0], {})


@pytest.mark.parametrize("source", TORCH)
@pytest.mark.parametrize("goal", TORCH)
def test_conversions_equal_torchs_bit_for_bit(tmp_path: Path, source: str, goal: str) -> None:
    tensor = holdable(values(source), goal)
    assert tensor.numel() > 20_000
    coverage = one_tensor(tmp_path, tensor)
    seen: list[int] = []
    placed, digest = copy_weights(coverage, goal, tmp_path, seen.append)
    file = tmp_path / COPY_FILE
    loaded = load_file(file)["w"]
    assert loaded.dtype == TORCH[goal]
    assert raw(loaded) == raw(tensor.to(TORCH[goal]))
    assert read(placed["w"]) == raw(loaded)
    assert sum(seen) == copied_size(coverage, goal) == placed["w"].nbytes
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("source", "goal", "value"),
    [
        ("float32", "float16", 65520.0),
        ("float32", "float16", -1e30),
        ("bfloat16", "float16", 70000.0),
        ("float32", "bfloat16", 3.4028235e38),
    ],
)
@pytest.mark.parametrize("company", [0.0, torch.inf])
def test_overflow_is_refused(tmp_path: Path, source: str, goal: str, value: float, company: float) -> None:
    """Also beside a value that was infinite before."""
    coverage = one_tensor(tmp_path, torch.tensor([1.0, company, value, 2.0]).to(TORCH[source]))
    with pytest.raises(CheckpointError, match=f"^w has values that {goal} cannot hold; use --dtype"):
        copy_weights(coverage, goal, tmp_path, lambda nbytes: None)


def test_the_largest_float16_is_no_overflow(tmp_path: Path) -> None:
    coverage = one_tensor(tmp_path, torch.tensor([65504.0, 65519.0, -65504.0, torch.inf]))
    copy_weights(coverage, "float16", tmp_path, lambda nbytes: None)
    assert load_file(tmp_path / COPY_FILE)["w"].tolist() == [65504.0, 65504.0, -65504.0, torch.inf]


def test_tensors_of_many_chunks_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sts_export.exporting.weights._CHUNK", 7)
    tensor = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    copy_weights(one_tensor(tmp_path, tensor), "bfloat16", tmp_path, lambda nbytes: None)
    assert torch.equal(load_file(tmp_path / COPY_FILE)["w"], tensor.bfloat16())


@pytest.mark.parametrize("left", [0, 1, 9])
def test_a_file_that_shrinks_meanwhile(tmp_path: Path, left: int) -> None:
    coverage = one_tensor(tmp_path, torch.ones(5))
    entry = coverage.used["w"]
    with entry.file.open("r+b") as stream:
        stream.truncate(entry.offset + left)
    with pytest.raises(CheckpointError, match="ended early in w"):
        copy_weights(coverage, "float16", tmp_path, lambda nbytes: None)


def test_no_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coverage = one_tensor(tmp_path, torch.ones(5000))
    usage = type("usage", (), {"free": copied_size(coverage, "float32")})  # no room for the header
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match="no room for the weights"):
        copy_weights(coverage, "float32", tmp_path, lambda nbytes: None)
    assert not (tmp_path / COPY_FILE).exists()


def test_the_stored_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    file = tmp_path / "mixed.safetensors"
    save_file({"big": torch.ones(100).half(), "a": torch.ones(20), "b": torch.ones(20), "c": torch.ones(5).bfloat16()}, file)
    assert stored_dtype(read_header(file)[0].values()) == "float16"


def test_linking_converts_nothing(tmp_path: Path) -> None:
    coverage = one_tensor(tmp_path, torch.ones(5).half())
    assert link_weights(coverage, "float16") == (tmp_path, coverage.used)
    with pytest.raises(CheckpointError, match="--weights link cannot convert float16 weights to float32; use --dtype float16"):
        link_weights(coverage, "float32")


def test_linking_needs_one_folder(tmp_path: Path) -> None:
    used = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({name: torch.ones(3)}, tmp_path / name / "w.safetensors")
        used.update(read_header(tmp_path / name / "w.safetensors")[0])
    with pytest.raises(CheckpointError, match="one folder") as caught:
        link_weights(Coverage(used, {}), "float32")
    assert str(tmp_path / "a") in str(caught.value) and "use --weights copy" in str(caught.value)
