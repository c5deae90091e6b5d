"""Opening checkpoint folders: what is read, and one line for everything that is wrong with one."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

from sts_export.checkpoints.checkpoint import COMPANION_FILES, open_checkpoint
from sts_export.errors import CheckpointError
from sts_export.families import family_of
from sts_export.graphs.towers.clip_contract import ClipVisionConfig

INDEX = "model.safetensors.index.json"
TENSORS: dict[str, dict[str, NDArray[Any]]] = {
    "shard-a": {"first.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "first.bias": np.ones(2, np.float32)},
    "shard-b": {"second.weight": np.arange(4, dtype=np.float16)},
}
CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 4,
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 84, "patch_size": 14},
    "text_config": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "rms_norm_eps": 1e-5,
    },
}


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def single(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    save_file({name: value for shard in TENSORS.values() for name, value in shard.items()}, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    weight_map = {}
    for shard, tensors in TENSORS.items():
        save_file(tensors, folder / f"{shard}.safetensors")
        weight_map.update(dict.fromkeys(tensors, f"{shard}.safetensors"))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("layout", [single, sharded])
def test_every_tensor_is_found_where_it_lies(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    checkpoint = open_checkpoint(layout(tmp_path))
    expected = {name: value for shard in TENSORS.values() for name, value in shard.items()}
    assert checkpoint.config == CONFIG
    assert checkpoint.tensors.keys() == expected.keys()
    for name, value in expected.items():
        entry = checkpoint.tensors[name]
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset)
            assert stream.read(entry.nbytes) == value.tobytes()
        assert entry.shape == value.shape
    assert set(checkpoint.shards) == {entry.file for entry in checkpoint.tensors.values()}
    assert len(set(checkpoint.shards.values())) == len(checkpoint.shards) == (1 if layout is single else 2)


def test_files_that_no_index_names_are_left_alone(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "consolidated.safetensors").write_bytes(b"another copy of the weights, for another program")
    assert len(open_checkpoint(folder).shards) == 2


PRESENT = (
    "model.safetensors",
    INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "consolidated.safetensors",
)


def from_transformers(folder: Path, named: str | None) -> set[str] | None:
    """Names of the files that from_pretrained loads; None where it finds nothing."""
    try:
        files, _ = _get_resolved_checkpoint_files(str(folder), None, None, None, None, False, named)
    except OSError:
        return None
    return {Path(file).name for file in files or []}


@pytest.mark.parametrize("named", [None, "consolidated.safetensors", "other.safetensors.index.json"])
def test_the_weights_that_count_are_those_that_transformers_loads(tmp_path: Path, named: str | None) -> None:
    """Every combination of files that a folder may hold."""
    whole = {name: value for shard in TENSORS.values() for name, value in shard.items()}
    origin = sharded(tmp_path / "origin")
    for name in PRESENT:
        if name.endswith(".safetensors"):
            save_file(whole, origin / name)
        elif name != INDEX:
            write_json(origin / name, {"metadata": {}, "weight_map": dict.fromkeys(whole, "pytorch_model.bin")})
    shutil.copy(origin / INDEX, origin / "other.safetensors.index.json")
    write_json(origin / "config.json", CONFIG if named is None else {**CONFIG, "transformers_weights": named})
    others = [file for file in origin.iterdir() if file.name not in PRESENT]
    loadable = 0
    for number, chosen in enumerate(chain.from_iterable(combinations(PRESENT, size) for size in range(len(PRESENT) + 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in (*others, *(origin / name for name in chosen)):
            (folder / file.name).symlink_to(file)
        expected = from_transformers(folder, named)
        if expected is None or not all((folder / name).is_file() and name.endswith(".safetensors") for name in expected):
            assert "weights" in refusal(folder) or "variants" in refusal(folder)
            continue
        loadable += 1
        shards = open_checkpoint(folder).shards
        assert {file.name for file in shards} == expected
    assert loadable >= 64


@pytest.mark.parametrize("named", ["../x.safetensors", "/x.safetensors", "pytorch_model.bin", 7])
def test_weights_that_config_json_cannot_name(tmp_path: Path, named: Any) -> None:
    folder = single(tmp_path)
    write_json(folder / "config.json", {**CONFIG, "transformers_weights": named})
    assert f"transformers_weights {named!r} in config.json" in refusal(folder)


def test_a_variant_alone_is_named(tmp_path: Path) -> None:
    folder = single(tmp_path)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert "variants, which are loaded only where asked for (model.fp16.safetensors); rename" in refusal(folder)


def test_companions_are_those_that_are_there(tmp_path: Path) -> None:
    folder = single(tmp_path)
    for name in ("tokenizer.json", "README.md", "merges.txt"):
        (folder / name).write_text("x")
    assert list(open_checkpoint(folder).companions()) == ["config.json", "tokenizer.json", "merges.txt"]
    assert "README.md" not in COMPANION_FILES


def test_the_hub_caches_links_are_followed(tmp_path: Path) -> None:
    """models--org--name/snapshots/<commit>/file -> ../../blobs/<hash>"""
    real = sharded(tmp_path / "real")
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(real.iterdir())):
        os.replace(file, repository / "blobs" / f"{number:04x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:04x}")
    checkpoint = open_checkpoint(snapshot)
    assert len(checkpoint.tensors) == 3
    assert {file.parent for file in checkpoint.shards} == {repository / "blobs"}
    assert not any(file.is_symlink() for file in checkpoint.shards)
    assert checkpoint.folder == snapshot


def rewrite_map(folder: Path, **changes: str | None) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"].update(changes)
    write_json(file, index)


def truncate(file: Path, left: int) -> None:
    assert file.stat().st_size > left
    with file.open("r+b") as stream:
        stream.truncate(left)


def config_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def dangling_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")


BROKEN: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], str]] = {
    "no-config": (single, lambda f: (f / "config.json").unlink(), "no config.json"),
    "config-is-folder": (single, config_folder, "no config.json"),
    "config-not-json": (single, lambda f: (f / "config.json").write_text("{nope"), "config.json is not valid JSON"),
    "config-empty": (single, lambda f: (f / "config.json").write_text(""), "config.json is not valid JSON"),
    "config-not-utf8": (single, lambda f: (f / "config.json").write_bytes(b'"\xff"'), "config.json is not valid JSON"),
    "config-deep": (single, lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
    "config-list": (single, lambda f: (f / "config.json").write_text("[1]"), "config.json is not a JSON object"),
    "no-weights": (single, lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "weights-empty": (single, lambda f: (f / "model.safetensors").write_bytes(b""), "not a complete safetensors file"),
    "weights-truncated": (single, lambda f: truncate(f / "model.safetensors", 240), "truncated"),
    "weights-header-only": (single, lambda f: truncate(f / "model.safetensors", 100), "not a complete safetensors file"),
    "weights-git-lfs-pointer": (
        single,
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "model.safetensors is a git-lfs pointer instead of the file itself; run git lfs pull",
    ),
    "shard-git-lfs-pointer": (
        sharded,
        lambda f: sorted(f.glob("*.safetensors"))[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "safetensors is a git-lfs pointer instead of the file itself; run git lfs pull",
    ),
    "index-git-lfs-pointer": (
        sharded,
        lambda f: (f / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors.index.json is a git-lfs pointer",
    ),
    "config-git-lfs-pointer": (
        single,
        lambda f: (f / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "config.json is a git-lfs pointer",
    ),
    "weights-dangling-link": (
        single,
        dangling_weights,
        "no model.safetensors",
    ),
    "index-not-json": (sharded, lambda f: (f / INDEX).write_text("weight_map:"), "not valid JSON"),
    "index-list": (sharded, lambda f: (f / INDEX).write_text("[]"), "not a JSON object"),
    "index-without-map": (sharded, lambda f: (f / INDEX).write_text('{"metadata": {}}'), "no weight_map"),
    "index-empty-map": (sharded, lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "no weight_map"),
    "index-map-list": (sharded, lambda f: (f / INDEX).write_text('{"weight_map": ["a"]}'), "no weight_map"),
    "index-null-file": (sharded, lambda f: rewrite_map(f, **{"first.bias": None}), "lacks 1 of 3 weight files"),
    "index-file-elsewhere": (
        sharded,
        lambda f: rewrite_map(f, x="../x/shard-a.safetensors"),
        "lacks 1 of 3 weight files",
    ),
    "shard-missing": (sharded, lambda f: (f / "shard-b.safetensors").unlink(), "lacks 1 of 2 weight files (first: shard-b"),
    "shard-truncated": (sharded, lambda f: truncate(f / "shard-b.safetensors", 80), "shard-b.safetensors is truncated"),
    "shard-lacks-tensor": (
        sharded,
        lambda f: rewrite_map(f, third="shard-b.safetensors"),
        "lacks 1 tensors its index names (first: third)",
    ),
    "tensor-in-two-shards": (
        sharded,
        lambda f: save_file({**TENSORS["shard-b"], "first.bias": np.ones(2, np.float32)}, f / "shard-b.safetensors"),
        "first.bias is in shard-a.safetensors and in shard-b.safetensors",
    ),
}


@pytest.mark.parametrize(("layout", "change", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders(
    tmp_path: Path, layout: Callable[[Path], Path], change: Callable[[Path], object], expected: str
) -> None:
    folder = layout(tmp_path)
    change(folder)
    message = refusal(folder)
    assert expected in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_pickles_are_never_loaded(tmp_path: Path, name: str) -> None:
    folder = single(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert "pickle weights only" in message and "convert them to safetensors" in message


def test_what_is_no_folder(tmp_path: Path) -> None:
    assert "not a folder" in refusal(tmp_path / "missing")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "not a folder" in refusal(file)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


def test_dimensions_of_a_llava_config() -> None:
    spec = family_of(CONFIG).parse(CONFIG, {})
    assert isinstance(spec.vision, ClipVisionConfig)
    assert (spec.max_image_tokens, spec.vision.feature_layers, spec.decoder.num_layers) == (36, 2, 4)
    assert (spec.decoder.head_dim, spec.decoder.num_kv_heads, spec.decoder.rope_theta) == (16, 2, 1e4)


def test_defaults_of_the_public_7b_config() -> None:
    """llava-hf/llava-1.5-7b-hf leaves out whatever equals transformers' defaults."""
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064},
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
    }
    spec = family_of(config).parse(config, {})
    assert isinstance(spec.vision, ClipVisionConfig)
    assert (spec.max_image_tokens, spec.vision.feature_layers) == (576, 23)
    decoder = spec.decoder
    assert (decoder.num_layers, decoder.hidden_size, decoder.intermediate_size) == (32, 4096, 11008)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim, decoder.vocab_size) == (32, 32, 128, 32064)
    assert spec.max_positions == 4096


def changed(**changes: Any) -> dict[str, Any]:
    """CONFIG with ``part__name`` replaced."""
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        part, _, name = path.rpartition("__")
        (config[part] if part else config)[name] = value
    return config


UNSUPPORTED = {
    "other-architecture": changed(model_type="llava_onevision"),
    "text-only-model": changed(model_type="llama"),
    "no-model-type": {},
    "model-type-list": changed(model_type=["llava"]),
    "siglip-tower": changed(vision_config__model_type="siglip_vision_model"),
    "mistral-decoder": changed(text_config__model_type="mistral"),
    "feature-layer-list": changed(vision_feature_layer=[-2, -5]),
    "feature-layer-too-deep": changed(vision_feature_layer=-5),
    "feature-layer-beyond": changed(vision_feature_layer=4),
    "full-features": changed(vision_feature_select_strategy="full"),
    "activation": changed(text_config__hidden_act="relu6"),
    "vision-activation": changed(vision_config__hidden_act="relu6"),
    "projector-activation": changed(projector_hidden_act="relu6"),
    "rope": changed(text_config__rope_parameters={"rope_type": "yarn", "factor": 4.0}),
    "part-is-text": changed(vision_config="clip"),
    "part-is-list": changed(text_config=[1]),
    "text-for-number": changed(text_config__hidden_size="wide"),
    "infinite": changed(text_config__num_hidden_layers=float("inf")),
    "not-a-number": changed(text_config__rope_parameters={"rope_theta": float("nan")}),
    "rope-theta-zero": changed(text_config__rope_parameters={"rope_theta": 0}),
    "no-layers": changed(text_config__num_hidden_layers=0),
    "million-layers": changed(text_config__num_hidden_layers=1_000_000),
    "million-wide-heads": changed(text_config__head_dim=1_000_000),
    "odd-head": changed(text_config__head_dim=15),
    "heads-not-divisible": changed(text_config__num_key_value_heads=3),
    "no-heads": changed(text_config__num_attention_heads=0, text_config__head_dim=None),
    "patch-larger-than-image": changed(vision_config__patch_size=85),
    "patch-zero": changed(vision_config__patch_size=0),
    "negative-width": changed(text_config__hidden_size=-48),
    "negative-epsilon": changed(text_config__rms_norm_eps=-1e-5),
}


@pytest.mark.parametrize("config", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_configs_that_the_graphs_cannot_express(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of(config).parse(config, {})
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)
