"""The header reader against the safetensors library, and against damage of every kind."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sts_export.checkpoints.safetensors_header import TensorEntry, encode_header, read_header
from sts_export.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write(file: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, and if ``length`` is given with a lie about the header's length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_bytes(value: torch.Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bytes(entry: TensorEntry) -> bytes:
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        return stream.read(entry.nbytes)


def test_entries_are_what_the_library_stored(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{index}": (torch.randn(shape, generator=generator) * 50).to(dtype)
        for name, dtype in DTYPES.items()
        for index, shape in enumerate([(3, 5), (7,), (), (2, 3, 4), (0,), (4, 0, 2)])
    }
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt", "note": "not a tensor"})
    entries, digest = read_header(file)
    assert entries.keys() == tensors.keys()
    for name, expected in tensors.items():
        entry = entries[name]
        assert (entry.name, entry.file) == (name, file)
        assert DTYPES[entry.dtype] == expected.dtype
        assert entry.shape == tuple(expected.shape)
        assert stored_bytes(entry) == raw_bytes(expected)
    assert digest == read_header(file)[1]


def test_the_fingerprint_knows_fine_tunes_apart(tmp_path: Path) -> None:
    """Same names, shapes and sizes; every value moved a little, as training does."""
    weights = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    save_file({"a": weights}, tmp_path / "base")
    save_file({"a": weights * 1.001}, tmp_path / "tuned")
    assert read_header(tmp_path / "base")[1] != read_header(tmp_path / "tuned")[1]


def test_the_digest_knows_headers_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a")
    save_file({"b": torch.zeros(2)}, tmp_path / "b")
    assert read_header(tmp_path / "a")[1] != read_header(tmp_path / "b")[1]


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "empty", {}))[0] == {}


def test_unknown_dtypes_are_listed_with_their_bytes(tmp_path: Path) -> None:
    entries, _ = read_header(write(tmp_path / "f8", {"w": tensor([2, 3], 0, 6, "F8_E4M3")}, bytes(6)))
    assert (entries["w"].dtype, entries["w"].nbytes) == ("F8_E4M3", 6)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_our_header_opens_in_the_library(tmp_path: Path, alignment: int) -> None:
    tensors = {"first": torch.arange(6.0).reshape(2, 3), "second.bias": torch.arange(4).half(), "none": torch.zeros(0)}
    stored = {"first": "F32", "second.bias": "F16", "none": "F32"}
    layout = [(name, stored[name], tuple(value.shape), len(raw_bytes(value))) for name, value in tensors.items()]
    header = encode_header(layout, alignment)
    assert len(header) % alignment == 0
    file = tmp_path / "ours.safetensors"
    file.write_bytes(header + b"".join(map(raw_bytes, tensors.values())))
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert torch.equal(loaded[name], expected)
        assert stored_bytes(read_header(file)[0][name]) == raw_bytes(expected)


MANY = 1 << 62
DAMAGED: dict[str, tuple[Any, bytes, int | None]] = {
    "length-beyond-the-file": ({"w": tensor([1], 0, 4)}, bytes(4), 10_000),
    "length-enormous": ({"w": tensor([1], 0, 4)}, bytes(4), (1 << 64) - 1),
    "length-too-short": ({"w": tensor([1], 0, 4)}, bytes(4), 5),
    "length-into-the-data": ({"w": tensor([1], 0, 4)}, bytes(4), 55),
    "length-zero": ({}, b"", 0),
    "not-json": (b"{not json}", b"", None),
    "not-utf8": (b'{"\xff": 1}', b"", None),
    "json-list": ([1, 2], b"", None),
    "json-number": (b"17", b"", None),
    "json-null": (b"null", b"", None),
    "json-deep": (b"[" * 100_000, b"", None),
    "tensor-not-object": ({"w": 3}, b"", None),
    "no-dtype": ({"w": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), None),
    "no-shape": ({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4), None),
    "no-offsets": ({"w": {"dtype": "F32", "shape": [1]}}, bytes(4), None),
    "dtype-number": ({"w": {**tensor([1], 0, 4), "dtype": 32}}, bytes(4), None),
    "shape-text": ({"w": {**tensor([1], 0, 4), "shape": "1"}}, bytes(4), None),
    "shape-float": ({"w": {**tensor([1], 0, 4), "shape": [1.5]}}, bytes(4), None),
    "shape-infinite": (b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4), None),
    "shape-nan": (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4), None),
    "shape-negative": ({"w": tensor([-1, -1], 0, 4)}, bytes(4), None),
    "shape-larger-than-bytes": ({"w": tensor([2], 0, 4)}, bytes(4), None),
    "shape-enormous": ({"w": tensor([MANY, MANY], 0, 4)}, bytes(4), None),
    "offsets-negative": ({"w": tensor([1], -4, 0)}, bytes(4), None),
    "offsets-reversed": ({"w": tensor([1], 4, 0)}, bytes(4), None),
    "offsets-three": ({"w": {**tensor([1], 0, 4), "data_offsets": [0, 4, 8]}}, bytes(8), None),
    "offsets-beyond-64-bit": ({"w": tensor([1], 1 << 70, (1 << 70) + 4)}, bytes(4), None),
    "overlap": ({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12), None),
    "overlap-beside-a-gap": ({"a": tensor([2], 0, 8), "b": tensor([1], 4, 8)}, bytes(12), None),
    "same-place": ({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, bytes(8), None),
    "gap": ({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12), None),
    "gap-at-start": ({"a": tensor([1], 4, 8)}, bytes(8), None),
    "truncated": ({"w": tensor([2], 0, 8)}, bytes(7), None),
    "no-data": ({"w": tensor([2], 0, 8)}, b"", None),
    "bytes-after-the-end": ({"w": tensor([1], 0, 4)}, bytes(5), None),
}


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    return message


@pytest.mark.parametrize(("header", "data", "length"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_one_checkpoint_error(tmp_path: Path, header: Any, data: bytes, length: int | None) -> None:
    file = write(tmp_path / "model.safetensors", header, data, length)
    refusal(file)
    with pytest.raises(SafetensorError):  # the library agrees
        safe_open(file, "np").__enter__()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("size", [0, 1, 7, 8])
def test_a_file_that_is_hardly_there(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x08" + bytes(max(0, size - 1)) if size else b"")
    assert "not a complete safetensors file" in refusal(file)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing")
    assert "Is a directory" in refusal(tmp_path)


def test_a_lie_about_the_length_costs_no_memory(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {}, length=1 << 40)
    with file.open("r+b") as stream:
        stream.truncate(1 << 41)  # sparse: the file really is that long
    tracemalloc.start()
    try:
        refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("fuzz") / "sound.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.arange(5).half()}, file)
    return file


fuzz = settings(derandomize=True, deadline=None, database=None, max_examples=400)


@fuzz
@given(data=st.data())
def test_no_change_of_bytes_breaks_the_reader(sound: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = sound.with_name("changed.safetensors")
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    check_against_library(file)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
almost_tensors = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from([*DTYPES, "F8_E4M3"]), json_values),
        "shape": st.one_of(st.lists(st.integers(-2, 6), max_size=3), json_values),
        "data_offsets": st.one_of(st.lists(st.integers(-4, 64), max_size=3), json_values),
    }
)


@fuzz
@given(header=st.dictionaries(st.text(max_size=4), st.one_of(almost_tensors, json_values), max_size=4), size=st.integers(0, 80))
def test_no_header_breaks_the_reader(sound: Path, header: dict[str, Any], size: int) -> None:
    check_against_library(write(sound.with_name("made_up.safetensors"), header, bytes(size)))


def check_against_library(file: Path) -> None:
    """The reader refuses, or sees what the library sees."""
    try:
        entries, _ = read_header(file)
    except CheckpointError as error:
        assert "is" in str(error) or "has" in str(error)
        return
    size = file.stat().st_size
    assert all(entry.offset >= 0 and entry.offset + entry.nbytes <= size for entry in entries.values())
    try:
        opened = safe_open(file, "np")
    except SafetensorError:
        return  # stricter than we are, for instance about metadata and alignment
    with opened as library:
        assert set(library.keys()) == set(entries)
        for name, entry in entries.items():
            view = library.get_slice(name)
            assert (tuple(view.get_shape()), view.get_dtype()) == (entry.shape, entry.dtype)
