"""`--quantize int8|int4`: what is in the bundle, that it runs, what is refused, and what it costs in memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from sts_export import Pipeline
from sts_export.bundle.description import as_text, describe
from sts_export.bundle.manifest import Manifest, open_bundle
from sts_export.checkpoints.checkpoint import open_checkpoint
from sts_export.checkpoints.safetensors_header import read_header
from sts_export.cli import main
from sts_export.errors import BundleError, CheckpointError, RequestError
from sts_export.exporting.exporter import export
from sts_export.families import family_of
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)
from tests.exporting.helpers import files, request
from tests.exporting.test_memory import sparse_checkpoint

Arrays = dict[str, NDArray[Any]]
LAYERS, TEXT, NEW = 2, 90, 10
SCHEMES = ("int8", "int4")
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda folder: write_random_llava(folder, RandomLlava(layers=LAYERS, vision_layers=2)),
    "llava_next": lambda folder: write_random_llava_next(folder, RandomLlavaNext(layers=LAYERS, vision_layers=2)),
    "qwen2_5_vl": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(layers=LAYERS)),
    "tied": lambda folder: write_random_llava(folder, RandomLlava(layers=LAYERS, vision_layers=2, tied_embeddings=True)),
    "float16": lambda folder: write_random_llava(folder, RandomLlava(layers=LAYERS, vision_layers=2, dtype="float16")),
    "bfloat16": lambda folder: write_random_qwen2_5_vl(folder, RandomQwen25VL(layers=LAYERS, dtype="bfloat16")),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Made:
    """Checkpoints and bundles, each written once; no test may change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = cache(self._source)
        self.bundle = cache(self._bundle)

    def _source(self, name: str) -> Path:
        return WRITERS[name](self.folder / name)

    def _bundle(self, name: str, quantize: str | None) -> Path:
        options = {"max_prompt_tokens": TEXT, "max_new_tokens": NEW, "dtype": "float32", "quantize": quantize}
        return export(request(self.source(name), self.folder / f"{name}-{quantize}", **options)).folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("quantized"))


def manifest_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return content


def tensors(bundle: Path) -> Arrays:
    """As the safetensors library reads them."""
    loaded: Arrays = load_numpy(bundle / "weights.safetensors")
    return loaded


def source_arrays(folder: Path) -> Arrays:
    """The checkpoint in float32, under the names that the graphs have."""
    family = family_of(open_checkpoint(folder).config)
    return {
        family.canonical_name(name): value.float().numpy()
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def dequantized(
    data: NDArray[Any], scales: NDArray[np.float32], bits: int, columns: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """[out, in], and the step of each weight."""
    if data.dtype == np.int8:
        assert data.shape == (columns, len(scales))
        return data.T * scales[:, None].astype(np.float64), np.repeat(scales[:, None], columns, 1)
    size = data.shape[2] * 8 // bits
    values = data if bits == 8 else np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:2], size)
    weights = (values.astype(np.float64) - (1 << (bits - 1))) * scales[..., None]
    return weights.reshape(len(data), -1)[:, :columns], np.repeat(np.abs(scales), size, 1)[:, :columns]


def expected_weights(source: Arrays) -> set[str]:
    """Projections of all decoder layers, embedding and head (a tied checkpoint has none); nothing before the decoder."""
    layer = re.compile(rf"layers\.\d+\.(self_attn|mlp)\.({'|'.join(PROJECTIONS)})\.weight$")
    decoder = [key for key in source if "vision_tower" not in key and "visual." not in key]
    return {key for key in decoder if layer.search(key) or key.endswith(("embed_tokens.weight", "lm_head.weight"))}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", WRITERS)
def test_weights_file(made: Made, name: str, scheme: str) -> None:
    """Decoder, embedding and head in integers that are near the checkpoint's weights; the rest as in the float bundle."""
    bundle, plain = made.bundle(name, scheme), made.bundle(name, None)
    ours, theirs, source = tensors(bundle), tensors(plain), source_arrays(made.source(name))
    wanted = expected_weights(source)
    quantized = {key.removesuffix(".quantized") for key in ours if key.endswith(".quantized")}
    assert quantized == wanted and len(wanted) == LAYERS * 7 + (1 if name == "tied" else 2)
    parts = {f"{key}.{part}" for key in quantized for part in ("quantized", "scales")}
    assert ours.keys() == (theirs.keys() - quantized) | parts
    for key in ours.keys() - parts:
        assert ours[key].dtype == theirs[key].dtype == np.float32
        assert ours[key].tobytes() == theirs[key].tobytes() == source[key].tobytes(), key
    for key in quantized:
        data, scales, weight = ours[f"{key}.quantized"], ours[f"{key}.scales"], source[key]
        table = "layers." not in key
        assert data.dtype == (np.int8 if scheme == "int8" and not table else np.uint8) and scales.dtype == np.float32
        values, steps = dequantized(data, scales, 4 if scheme == "int4" and not table else 8, weight.shape[1])
        assert values.shape == weight.shape
        error = np.abs(values - weight)
        assert (error <= steps * 1.00001).all() and error.mean() < 0.3 * steps.mean(), key


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_manifest_and_sizes(made: Made, name: str, scheme: str) -> None:
    bundle, plain = made.bundle(name, scheme), made.bundle(name, None)
    manifest, before = manifest_of(bundle), manifest_of(plain)
    assert (manifest["quantization"], manifest["dtype"]) == (scheme, "float32")
    assert (before["quantization"], before["unquantized_weights"]) == (None, {})
    assert manifest["unquantized_weights"] == {}
    for key in ("model", "pruning", "capacities", "source", "unused_weights", "companions"):
        assert manifest[key] == before[key], key
    file = bundle / "weights.safetensors"
    (record,) = manifest["weights"]["files"]
    assert manifest["weights"]["mode"] == "copy" and record["size"] == file.stat().st_size
    entries, _ = read_header(file)
    assert sum(entry.nbytes for entry in entries.values()) == expected_bytes(made, name, scheme)
    assert all(entry.offset % 4 == 0 for entry in entries.values() if entry.dtype == "F32")
    opened = open_bundle(bundle, check_all=True)
    assert Manifest.from_json(manifest) == opened.manifest
    assert scheme in as_text(describe(opened))
    with safe_open(file, "np") as reader:
        assert set(reader.keys()) == entries.keys()
        assert {reader.get_slice(key).get_dtype() for key in entries} == (
            {"F32", "I8", "U8"} if scheme == "int8" else {"F32", "U8"}
        )


def expected_bytes(made: Made, name: str, scheme: str) -> int:
    """Counted from the shapes of the float bundle."""
    total, quantized = 0, expected_weights(source_arrays(made.source(name)))
    for key, weight in tensors(made.bundle(name, None)).items():
        if key not in quantized:
            total += weight.nbytes
            continue
        rows, columns = weight.shape
        if "layers." not in key:
            assert columns % 16 == 0
            blocks = largest_block(columns) if "embed_tokens" in key else 128
            total += rows * -(-columns // blocks) * (blocks + 4)
        elif scheme == "int8":
            total += rows * columns + 4 * rows
        else:
            total += rows * -(-columns // 32) * (16 + 4)
    return total


def largest_block(columns: int) -> int:
    return next(size for size in (128, 64, 32, 16) if columns % size == 0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", WRITERS)
def test_runs(made: Made, name: str, scheme: str) -> None:
    """With pictures and without; numbers are near those of the float bundle, and change with quantization."""
    ours, theirs = (Pipeline(made.bundle(name, quantize), threads=1) for quantize in (scheme, None))
    image = random_image(3, (120, 84))
    result = ours.generate("What is it?", image, max_new_tokens=5, ignore_eos=True)
    assert len(result.token_ids) == 5
    expected = theirs.score("What is it?", [image], result.token_ids)
    error = np.abs(ours.score("What is it?", [image], result.token_ids) - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < (0.3 if scheme == "int8" else 1.0)
    # Nothing before the decoder changed, so stage 1 keeps the very same tokens.
    assert result.kept_stage1 == theirs.generate("What is it?", image, max_new_tokens=1).kept_stage1
    assert ours.generate("Hello", max_new_tokens=2, ignore_eos=True).token_ids


def test_every_linear_layer_of_the_decoder_is_quantized(made: Made) -> None:
    """In the graphs, too: no Gemm on a float weight is left, and no graph names a weight in both forms."""
    import onnx

    for scheme, operator in (("int8", "MatMulIntegerToFloat"), ("int4", "MatMulNBits")):
        for graph in ("llm_lower", "llm_upper"):
            content = onnx.load(made.bundle("llava", scheme) / f"{graph}.onnx", load_external_data=False).graph
            kinds = [node.op_type for node in content.node]
            assert "Gemm" not in kinds and operator in kinds
            assert ("GatherBlockQuantized" in kinds) == (graph == "llm_lower")
            names = {item.name for item in content.initializer}
            assert not any(f"{name}.quantized" in names for name in names)
        for graph in ("vision_encoder.onnx", "selector.onnx"):
            assert (made.bundle("llava", scheme) / graph).read_bytes() == (made.bundle("llava", None) / graph).read_bytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tied_matrix_is_stored_once(made: Made, scheme: str) -> None:
    stored = tensors(made.bundle("tied", scheme))
    assert [key for key in stored if "embed_tokens" in key or "lm_head" in key] == [
        key for key in stored if re.search(r"embed_tokens\.weight\.(quantized|scales)$", key)
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_what_stays_in_float32_is_said(tmp_path: Path, scheme: str, tied: bool) -> None:
    """Rows of 40 have no block of 16 or more for the lookup; a head of its own pads its last block."""
    spec = RandomLlava(layers=LAYERS, vision_layers=2, width=40, tied_embeddings=tied)
    source = write_random_llava(tmp_path / "source", spec)
    made = export(request(source, tmp_path / "bundle", quantize=scheme, max_prompt_tokens=TEXT, max_new_tokens=NEW))
    assert made.manifest.unquantized_weights == {"its rows of 40 are not a multiple of 16": 1}
    stored = tensors(made.folder)
    (table,) = (key for key in stored if "embed_tokens" in key)
    assert table.endswith("embed_tokens.weight") and stored[table].dtype == np.float32
    assert any("lm_head.weight.quantized" in key for key in stored) != tied
    assert len(Pipeline(made.folder, threads=1).generate("What?", random_image(0), max_new_tokens=3, ignore_eos=True).token_ids)


def test_twice_the_same_bundle(made: Made, tmp_path: Path) -> None:
    again = export(
        request(
            made.source("llava"),
            tmp_path / "again",
            quantize="int4",
            max_prompt_tokens=TEXT,
            max_new_tokens=NEW,
            dtype="float32",
        )
    )
    assert files(again.folder) == files(made.bundle("llava", "int4"))


def test_progress_counts_the_bytes_written(made: Made, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    export(request(made.source("llava"), tmp_path / "bundle", quantize="int8"), lambda *numbers: calls.append(numbers))
    entries, _ = read_header(tmp_path / "bundle" / "weights.safetensors")
    total = sum(entry.nbytes for entry in entries.values())
    assert calls[-1] == (total, total) and calls == sorted(calls) and {item[1] for item in calls} == {total}


def test_default_output_names_the_scheme(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(made.source("llava")), "--budget", "12", "--quantize", "int8"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["llava-b12-int8"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "link": (["--quantize", "int8", "--weights", "link"], "--weights link cannot quantize: use --weights copy"),
    "float16": (["--quantize", "int4", "--dtype", "float16"], "--quantize computes in float32: leave out --dtype float16"),
    "bfloat16": (["--quantize", "int8", "--dtype", "bfloat16"], "leave out --dtype bfloat16"),
    "unknown": (["--quantize", "int3"], "int3"),
    "nothing": (["--quantize"], "expected one argument"),
}


@pytest.mark.parametrize(("arguments", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    source = made.source("llava")
    capsys.readouterr()
    code = main(["--model", str(source), "--budget", "12", "--output", str(tmp_path / "sub" / "bundle"), *arguments])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("sts-export: ") and printed.err.count("\n") == 1 and expected in printed.err
    assert files(tmp_path) == {}


def test_unknown_scheme_from_python(made: Made, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown quantization 'int2': choose one of int8, int4"):
        export(request(made.source("llava"), tmp_path / "bundle", quantize="int2"))
    assert files(tmp_path) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_leaves_nothing(made: Made, tmp_path: Path, value: float) -> None:
    source = Path(shutil.copytree(made.source("llava"), tmp_path / "source"))
    stored = load_file(source / "model.safetensors")
    name = next(key for key in stored if key.endswith("layers.1.mlp.up_proj.weight"))
    stored[name][5, 7] = value
    save_file(stored, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        export(request(source, tmp_path / "bundle", quantize="int8"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("part", ["quantized", "scales"])
def test_an_altered_tensor_is_noticed(made: Made, tmp_path: Path, scheme: str, part: str) -> None:
    bundle = Path(shutil.copytree(made.bundle("llava", scheme), tmp_path / "bundle"))
    file = bundle / "weights.safetensors"
    entry = next(item for name, item in read_header(file)[0].items() if name.endswith(f"mlp.up_proj.weight.{part}"))
    content = bytearray(file.read_bytes())
    content[entry.offset + entry.nbytes // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="was altered: its sha256 differs"):
        open_bundle(bundle)


@pytest.mark.parametrize("scheme", ["int3", 8, "int8 "])
def test_a_manifest_of_an_unknown_scheme_is_damaged(made: Made, tmp_path: Path, scheme: Any) -> None:
    bundle = Path(shutil.copytree(made.bundle("llava", "int8"), tmp_path / "bundle"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest_of(bundle), "quantization": scheme}))
    with pytest.raises(BundleError, match="is damaged"):
        open_bundle(bundle)


_EXPORT = """
import sys
sys.modules["torch"] = None  # installed here, for the reference; importing it fails
from sts_export.exporting.exporter import ExportRequest, export
export(ExportRequest(sys.argv[1], sys.argv[2], budget="64", quantize=sys.argv[3]))
status = open("/proc/self/status").read()
print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024)
"""


def fill(file: Path) -> None:
    """Numbers where the file has a hole."""
    start, size = min(entry.offset for entry in read_header(file)[0].values()), file.stat().st_size
    chunk = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float16).tobytes()
    with file.open("r+b") as stream:
        stream.seek(start)
        while (left := size - stream.tell()) > 0:
            stream.write(chunk[:left])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_is_bounded(tmp_path: Path, scheme: str) -> None:
    """A checkpoint of 218 MB with two matrices that are 134 MB each as float32: imports and a few chunks, no more."""
    text = {"vocab_size": 1 << 16, "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 2}
    source = sparse_checkpoint(tmp_path / "source", 2, **text, num_attention_heads=4)
    file = source / "model.safetensors"
    fill(file)
    assert 180e6 < file.stat().st_size < 240e6
    command = [sys.executable, "-c", _EXPORT, str(source), str(tmp_path / "bundle"), scheme]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 200
