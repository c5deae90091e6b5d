"""What lands in the bundle: the source's bytes, under the right names, each time the same."""

from __future__ import annotations

import builtins
import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

from sts_export.bundle.manifest import open_bundle
from sts_export.errors import OutputError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.exporting.helpers import files, raw, request, source_tensors


def initializers(bundle_folder: Path, weights_folder: Path) -> dict[str, bytes]:
    """Parameter name -> the bytes its graphs point at, read by means of the onnx package alone."""
    found: dict[str, bytes] = {}
    for graph in bundle_folder.glob("*.onnx"):
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {item.key: item.value for item in tensor.external_data}
            assert "/" not in place["location"]
            with (weights_folder / place["location"]).open("rb") as stream:
                stream.seek(int(place["offset"]))
                content = stream.read(int(place["length"]))
            assert found.setdefault(tensor.name, content) == content
    return found


@pytest.mark.parametrize("shards", ["5GB", "60KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("mode", ["copy", "link"])
def test_the_graphs_point_at_the_sources_bytes(tmp_path: Path, mode: Any, shards: str) -> None:
    source = write_random_llava(tmp_path / "source", RandomLlava(max_shard_size=shards))
    before = files(source)
    bundle = export(request(source, tmp_path / "bundle", weights=mode))
    expected = source_tensors(source)
    found = initializers(bundle.folder, bundle.weights_folder)
    unused = sum(bundle.manifest.unused_weights.values())
    assert len(found) == len(expected) - unused
    assert found == {name: raw(expected[name]) for name in found}
    assert files(source) == before
    copied = (bundle.folder / "weights.safetensors").exists()
    assert copied == (mode == "copy")
    assert bundle.weights_folder == (bundle.folder if copied else source)
    assert (len(bundle.manifest.weights.files) > 1) == (mode == "link" and shards == "60KB")
    open_bundle(bundle.folder, check_all=True)
    for name in ("config.json", "tokenizer.json", "processor_config.json"):
        assert (bundle.folder / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_copy_opens_in_the_safetensors_library(checkpoint: Path, tmp_path: Path, dtype: Any) -> None:
    bundle = export(request(checkpoint, tmp_path / "bundle", dtype=dtype))
    loaded = load_file(bundle.folder / "weights.safetensors")
    expected = source_tensors(checkpoint)
    assert len(loaded) == len(expected) - 18
    for name, value in loaded.items():
        assert value.dtype == getattr(torch, dtype)
        assert raw(value) == raw(expected[name].to(value.dtype))
    assert initializers(bundle.folder, bundle.folder) == {name: raw(value) for name, value in loaded.items()}
    assert bundle.manifest.dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_checkpoints_dtype_is_kept(tmp_path: Path, dtype: Any) -> None:
    source = write_random_llava(tmp_path / "source", RandomLlava(dtype=dtype))
    for mode in ("copy", "link"):
        bundle = export(request(source, tmp_path / mode, weights=mode))
        assert bundle.manifest.dtype == dtype
        found = initializers(bundle.folder, bundle.weights_folder)
        expected = source_tensors(source)
        assert found == {name: raw(expected[name]) for name in found}


def test_the_hub_caches_blobs_are_linked(checkpoint: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in checkpoint.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (blobs / digest).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{digest}")
    bundle = export(request(snapshot, tmp_path / "bundle", weights="link"))
    assert bundle.weights_folder == blobs
    assert not any(file.is_symlink() for file in bundle.folder.iterdir())
    expected = source_tensors(checkpoint)
    found = initializers(bundle.folder, blobs)
    assert found and found == {name: raw(expected[name]) for name in found}


def test_exports_are_reproducible(checkpoint: Path, tmp_path: Path) -> None:
    first = export(request(checkpoint, tmp_path / "a"))
    second = export(request(checkpoint, tmp_path / "b"))
    assert files(first.folder) == files(second.folder)


def test_progress_counts_every_byte(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    bundle = export(request(checkpoint, tmp_path / "bundle"), lambda done, total: seen.append((done, total)))
    data = sum(value.numel() * 4 for value in load_file(bundle.folder / "weights.safetensors").values())
    assert {total for _, total in seen} == {data}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == data


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"budget": "12"}, "tiny-b12"),
        ({"budget": "50%"}, "tiny-b50pct"),
        ({"budget": " 50 %"}, "tiny-b50pct"),
        ({"budget": None, "keep": (9, 3)}, "tiny-k9-3"),
    ],
)
def test_default_names(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(ExportRequest(str(checkpoint), weights="link", **options)).folder == Path(name)
    assert (tmp_path / name / "manifest.json").is_file()


def test_the_current_folder_has_a_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(OutputError, match=r"^tiny-b12 exists"):
        (checkpoint / "tiny-b12").mkdir()
        try:
            export(ExportRequest(".", budget="12", weights="link"))
        finally:
            (checkpoint / "tiny-b12").rmdir()


def test_nothing_is_unpickled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles beside the safetensors files are not even opened."""
    source = tmp_path / "source"
    source.mkdir()
    for file in checkpoint.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    opened: list[str] = []
    real = builtins.open

    def recorded(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", recorded)
    bundle = export(request(source, tmp_path / "bundle", weights="link"))
    assert not any("pytorch_model" in name for name in opened)
    assert not (bundle.folder / "pytorch_model.bin").exists()
