"""Exports: what lands in the bundle, what a failure leaves behind (nothing), and what they cost in memory."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

import sts_export.exporter
from sts_export.bundle import open_bundle
from sts_export.errors import CheckpointError, OutputError, RequestError, StsExportError
from sts_export.exporter import ExportRequest, export
from sts_export.families import llava
from sts_export.safetensors_header import encode_header
from tests.checkpoints import RandomLlava, write_random_llava

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llava(tmp_path_factory.mktemp("checkpoint") / "tiny", RandomLlava(layers=2, vision_layers=2))


def files(folder: Path) -> dict[str, bytes]:
    """Everything below ``folder``: name -> content."""
    return {
        str(file.relative_to(folder)): b"folder" if file.is_dir() else file.read_bytes() for file in sorted(folder.rglob("*"))
    }


def request(checkpoint: Path, output: Path, **options: Any) -> ExportRequest:
    return ExportRequest(str(checkpoint), output, **{"budget": "12", **options})


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


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def source_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        llava.canonical_name(name): value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()
    }


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


# --- failures --------------------------------------------------------------------------------------------------------


class Interrupt:
    """Raises in the middle of the weights."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1
        if done > total // 2:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken"), SystemExit(3), MemoryError()], ids=repr)
@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path, error: BaseException, nested: bool) -> None:
    output = tmp_path / "new" / "deep" / "bundle" if nested else tmp_path / "bundle"
    interrupt = Interrupt(error)
    with pytest.raises(type(error)):
        export(request(checkpoint, output), interrupt)
    assert interrupt.calls > 1
    assert files(tmp_path) == {}


@pytest.mark.parametrize("step", ["_save_graph", "_copy_companions", "write_manifest", "_store_weights"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=["interrupt", "io-error"]
)
def test_a_failure_at_any_step_leaves_nothing_and_keeps_the_old_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    export(request(checkpoint, tmp_path / "bundle", weights="link"))
    before = files(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(sts_export.exporter, step, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        export(request(checkpoint, tmp_path / "bundle", weights="link", force=True, budget="8"))
    assert files(tmp_path) == before


def test_the_old_bundle_comes_back_if_the_last_rename_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(request(checkpoint, tmp_path / "bundle", weights="link"))
    before = files(tmp_path)
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == "bundle" and not Path(source).name.endswith("-old"):
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        export(request(checkpoint, tmp_path / "bundle", weights="link", force=True, budget="8"))
    assert files(tmp_path) == before


def test_a_disk_that_is_too_small(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 100_000}))
    with pytest.raises(OutputError, match="no room for the weights: 0 MB needed"):
        export(request(checkpoint, tmp_path / "bundle"))
    assert files(tmp_path) == {}


def test_a_disk_that_fills_up_meanwhile(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real stream whose file must not grow beyond 200 kB."""
    import io

    class SmallDisk(io.FileIO):
        def write(self, block: Any) -> int:
            if self.tell() + len(block) > 200_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(block)

    real = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return SmallDisk(path, "w") if mode == "wb" else real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OutputError, match="is full; free 0 MB or use --weights link"):
        export(request(checkpoint, tmp_path / "bundle"))
    assert files(tmp_path) == {}


def test_a_disk_that_is_full_for_the_graphs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        export(request(checkpoint, tmp_path / "bundle", weights="link"))
    assert files(tmp_path) == {}


def test_a_parent_that_cannot_be_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another --output"):
        export(request(checkpoint, tmp_path / "file" / "bundle"))

    def denied(*args: Any, **kwargs: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr("tempfile.mkdtemp", denied)
    with pytest.raises(OutputError, match="Permission denied; choose another --output"):
        export(request(checkpoint, tmp_path / "new" / "bundle"))
    assert files(tmp_path) == {"file": b"x"}


def test_force_replaces_a_bundle_and_all_of_it(checkpoint: Path, tmp_path: Path) -> None:
    export(request(checkpoint, tmp_path / "bundle"))
    with pytest.raises(OutputError, match="exists; choose another --output or replace it with --force"):
        export(request(checkpoint, tmp_path / "bundle", budget="8"))
    assert open_bundle(tmp_path / "bundle").manifest.pruning.average == 12
    new = export(request(checkpoint, tmp_path / "bundle", budget="8", weights="link", force=True))
    assert open_bundle(tmp_path / "bundle").manifest == new.manifest
    assert not (tmp_path / "bundle" / "weights.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_force_follows_a_link_to_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    export(request(checkpoint, tmp_path / "real"))
    (tmp_path / "link").symlink_to("real")
    export(request(checkpoint, tmp_path / "link", budget="8", force=True))
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / "real").manifest.pruning.average == 8


def test_force_fills_an_empty_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    export(request(checkpoint, tmp_path / "bundle", weights="link", force=True))
    open_bundle(tmp_path / "bundle")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def make_web_app(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "web app", "schema_version": 1}')
    (path / "photos").mkdir()


def make_damaged(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"schema_version": 1, "pruning"')


FOREIGN: dict[str, Callable[[Path], object]] = {
    "folder": make_folder,
    "file": lambda path: path.write_text("years of work"),
    "folder-with-another-manifest": make_web_app,
    "folder-with-a-damaged-manifest": make_damaged,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_bundle_is_never_replaced(
    checkpoint: Path, tmp_path: Path, make: Callable[[Path], object], force: bool
) -> None:
    make(tmp_path / "output")
    before = files(tmp_path)
    with pytest.raises(OutputError) as caught:
        export(request(checkpoint, tmp_path / "output", force=force))
    assert ("is not a bundle" in str(caught.value)) == force
    assert files(tmp_path) == before


def test_force_never_removes_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    export(request(checkpoint, tmp_path / "bundle", weights="link"))
    source = write_random_llava(tmp_path / "bundle" / "source")
    before = files(tmp_path)
    with pytest.raises(OutputError, match="holds the checkpoint itself"):
        export(request(source, tmp_path / "bundle", force=True))
    assert files(tmp_path) == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no-budget": ({"budget": None}, "give either a budget"),
    "budget-and-keep": ({"keep": (9, 3)}, "give either a budget"),
    "keep-too-many": ({"budget": None, "keep": (37, 3)}, "stage 1 cannot keep 37 of 36"),
    "keep-stage2-above": ({"budget": None, "keep": (9, 10)}, "stage 2 cannot keep 10"),
    "keep-zero": ({"budget": None, "keep": (0, 0)}, "stage 1 cannot keep 0"),
    "unknown-method": ({"method": "fastv"}, "unknown method 'fastv'"),
    "unknown-method-with-keep": ({"budget": None, "keep": (9, 3), "method": "x"}, "unknown method 'x'"),
    "prune-layer": ({"prune_layer": 4}, "choose --prune-layer between 1 and 1"),
    "unknown-anchor": ({"choices": {"anchor": "last"}}, "unknown anchor"),
    "unknown-dtype": ({"dtype": "int8"}, "unknown dtype 'int8'"),
    "prompt-tokens-zero": ({"max_prompt_tokens": 0}, "must be at least 1"),
    "new-tokens-negative": ({"max_new_tokens": -1}, "must be at least 1"),
    "too-many-positions": ({"max_new_tokens": 2000}, "exceed 2048 positions"),
    "link-with-conversion": ({"weights": "link", "dtype": "float16"}, "--weights link cannot convert"),
}


@pytest.mark.parametrize(("options", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_requests(checkpoint: Path, tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        export(request(checkpoint, tmp_path / "sub" / "bundle", **options))
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == {}


def test_one_decoder_layer_cannot_be_split(tmp_path: Path) -> None:
    source = write_random_llava(tmp_path / "source", RandomLlava(layers=1))
    with pytest.raises(StsExportError, match="a decoder of 1 layer cannot be split"):
        export(request(source, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_overflow_leaves_nothing(tmp_path: Path) -> None:
    source = write_random_llava(tmp_path / "source")
    file = source / "model.safetensors"
    from safetensors.torch import save_file

    tensors = load_file(file)
    tensors["multi_modal_projector.linear_1.bias"][3] = 1e6
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"multi_modal_projector.linear_1.bias has values that float16 cannot hold"):
        export(request(source, tmp_path / "bundle", dtype="float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_is_unpickled(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles beside the safetensors files are not even opened."""
    source = tmp_path / "source"
    source.mkdir()
    for file in checkpoint.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    opened: list[str] = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(str(file)), real(file, *a, **k))[1])
    bundle = export(request(source, tmp_path / "bundle", weights="link"))
    assert not any("pytorch_model" in name for name in opened)
    assert not (bundle.folder / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json; copy the tokenizer files"),
        ("processor_config.json", None, "has no image processor; copy preprocessor_config.json"),
        (
            "processor_config.json",
            {"crop_size": {"height": 224, "width": 224}},
            "crops to 224 pixels, the vision tower takes 84",
        ),
    ],
    ids=["no-tokenizer", "no-processor", "other-crop"],
)
def test_what_the_runtime_will_need_is_there(
    checkpoint: Path, tmp_path: Path, name: str, change: dict[str, Any] | None, message: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    if change is None:
        (source / name).unlink()
    else:
        settings = json.loads((source / name).read_text())
        settings["image_processor"] |= change
        (source / name).write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        export(request(source, tmp_path / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- memory ----------------------------------------------------------------------------------------------------------

_MEASURE = """
import json, resource, sys
import onnxscript, onnx_ir, onnx, onnx.defs, numpy, ml_dtypes, jinja2
from sts_export.exporter import ExportRequest, export
from sts_export.graphs import llm_lower
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = peak()
export(ExportRequest(**json.loads(sys.argv[1])))
print(peak() - before, "torch" in sys.modules)
"""


def peak_of_export(**options: Any) -> float:
    """MB beyond the imports, in a process of its own."""
    command = [sys.executable, "-c", _MEASURE, json.dumps(options)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, has_torch = result.stdout.split()[-2:]
    assert has_torch == "False"
    return float(peak)


def sparse_checkpoint(folder: Path, vision_layers: int = 24, **text: Any) -> Path:
    """A checkpoint of true LLaVA-1.5-7B shapes, except as in ``text``, whose weights are a hole in the file: all zeros."""
    text_config = {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, **text}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": vision_layers, "num_attention_heads": 16}
    vision |= {"image_size": 336, "patch_size": 14}
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, **text_config},
        "vision_config": {"model_type": "clip_vision_model", **vision},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 336, "width": 336}})
    )
    width, mlp, vocab = text_config["hidden_size"], text_config["intermediate_size"], text_config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    llm, tower, projector = "language_model.model", "vision_tower.vision_model", "multi_modal_projector"
    shapes[f"{llm}.embed_tokens.weight"] = shapes["language_model.lm_head.weight"] = (vocab, width)
    shapes[f"{llm}.norm.weight"] = (width,)
    for layer in range(text_config["num_hidden_layers"]):
        name = f"{llm}.layers.{layer}"
        for kind in "qkvo":
            shapes[f"{name}.self_attn.{kind}_proj.weight"] = (width, width)
        shapes[f"{name}.mlp.gate_proj.weight"] = shapes[f"{name}.mlp.up_proj.weight"] = (mlp, width)
        shapes[f"{name}.mlp.down_proj.weight"] = (width, mlp)
        shapes[f"{name}.input_layernorm.weight"] = shapes[f"{name}.post_attention_layernorm.weight"] = (width,)
    shapes[f"{tower}.embeddings.class_embedding"] = (1024,)
    shapes[f"{tower}.embeddings.patch_embedding.weight"] = (1024, 3, 14, 14)
    shapes[f"{tower}.embeddings.position_embedding.weight"] = (577, 1024)
    norms = [f"{tower}.pre_layrnorm", f"{tower}.post_layernorm"]
    linears = {f"{projector}.linear_1": (width, 1024), f"{projector}.linear_2": (width, width)}
    for layer in range(vision_layers):
        name = f"{tower}.encoder.layers.{layer}"
        norms += [f"{name}.layer_norm1", f"{name}.layer_norm2"]
        linears |= {f"{name}.self_attn.{kind}_proj": (1024, 1024) for kind in ("q", "k", "v", "out")}
        linears |= {f"{name}.mlp.fc1": (4096, 1024), f"{name}.mlp.fc2": (1024, 4096)}
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (1024,)
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    layout = [(name, "F16", shape, 2 * int(torch.Size(shape).numel())) for name, shape in shapes.items()]
    header = encode_header(layout)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(nbytes for *_, nbytes in layout))
    return folder


def test_linking_a_7b_checkpoint_takes_no_memory(tmp_path: Path) -> None:
    source = sparse_checkpoint(tmp_path / "llava-1.5-7b-hf")
    assert (source / "model.safetensors").stat().st_size > 14e9
    output = tmp_path / "bundle"
    assert peak_of_export(model=str(source), output=str(output), budget="64", weights="link") < 200
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["pruning"]["keep_stage1"], manifest["pruning"]["keep_stage2"]) == (96, 32)
    assert manifest["dtype"] == "float16"
    assert sum(file.stat().st_size for file in output.iterdir()) < 32e6


def test_copying_a_large_tensor_takes_a_bounded_amount(tmp_path: Path) -> None:
    """An embedding of 268 MB, converted in chunks."""
    options = {"vocab_size": 1 << 18, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 2}
    source = sparse_checkpoint(tmp_path / "source", 2, **options, num_attention_heads=4, tie_word_embeddings=True)
    output = tmp_path / "bundle"
    peak = peak_of_export(model=str(source), output=str(output), budget="64", dtype="bfloat16")
    assert (output / "weights.safetensors").stat().st_size > 268e6
    assert peak < 200
