"""Streamed quantization: to the element, for every shape, block and chunk; refusals."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.checkpoints.safetensors_header import TensorEntry, encode_header, read_header
from sts_export.errors import CheckpointError
from sts_export.exporting.quantized_weights import StoredTensor, block_rounded, quantized_blocks, quantized_layout
from sts_export.lowering.quantized_graphs import Blocks, Columns, Form, QuantizedWeight

NUMPY: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
FORMS: list[Form] = [Columns(), Blocks(8, 32), Blocks(8, 128), Blocks(4, 16), Blocks(4, 32), Blocks(4, 128)]
no_cleanup = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def store(folder: Path, weights: NDArray[Any], dtype: str = "F32", lead: int = 5) -> TensorEntry:
    """A tensor that does not start at the beginning of its file."""
    raw = weights.astype(NUMPY[dtype]).tobytes()
    file = folder / "source.bin"
    file.write_bytes(b"\xff" * lead + raw + b"\xff" * 3)
    return TensorEntry("a.weight", file, dtype, weights.shape, lead, len(raw))


def produce(entry: TensorEntry, form: Form, **chunk: int) -> tuple[NDArray[Any], NDArray[np.float32], list[StoredTensor]]:
    """Data and scales as their readers see them."""
    scales, data = layout = quantized_layout([QuantizedWeight("a.weight", form, *entry.shape)])
    raw = {tensor.part: b"".join(quantized_blocks(entry, tensor, **chunk)) for tensor in layout}
    assert all(len(raw[tensor.part]) == tensor.nbytes for tensor in layout)
    integers = np.frombuffer(raw["data"], {"I8": np.int8, "U8": np.uint8}[data.dtype]).reshape(data.shape)
    return integers, np.frombuffer(raw["scales"], np.float32).reshape(scales.shape), layout


def dequantized(data: NDArray[Any], scales: NDArray[np.float32], form: Form, columns: int) -> NDArray[np.float64]:
    """[out, in] by the operators' definitions, an element at a time."""
    if isinstance(form, Columns):
        return data.T.astype(np.float64) * scales[:, None]
    result = np.zeros((data.shape[0], columns))
    for row in range(data.shape[0]):
        for column in range(columns):
            block, place = divmod(column, form.block_size)
            if form.bits == 8:
                value = int(data[row, block, place]) - 128
            else:
                byte = int(data[row, block, place // 2])
                value = (byte & 15 if place % 2 == 0 else byte >> 4) - 8
            result[row, column] = value * float(scales[row, block])
    return result


def steps(scales: NDArray[np.float32], form: Form, columns: int) -> NDArray[np.float64]:
    """The step of every weight, [out, in]."""
    wide = np.abs(scales.astype(np.float64))
    return (
        np.repeat(wide[:, None], columns, 1) if isinstance(form, Columns) else np.repeat(wide, form.block_size, 1)[:, :columns]
    )


@no_cleanup
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 140),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 60.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_within_a_step_of_the_source(
    tmp_path: Path, rows: int, columns: int, form: Form, dtype: str, scale: float, seed: int
) -> None:
    weights = np.random.default_rng(seed).standard_normal((rows, columns)) * (min(scale, 1e3) if dtype == "F16" else scale)
    entry = store(tmp_path, weights, dtype)
    source = weights.astype(NUMPY[dtype]).astype(np.float64)
    data, scales, _ = produce(entry, form)
    error = np.abs(dequantized(data, scales, form, columns) - source)
    step = steps(scales, form, columns)
    assert (error <= step * (1 + 1e-5)).all()
    half = error <= step * (0.5 + 1e-4)
    # More than half a step only at the extreme that two's complement lacks, and never for columns.
    assert (half | (np.abs(source) > (step * 2 ** (form.bits - 1) - step) * 0.999 if isinstance(form, Blocks) else half)).all()
    if isinstance(form, Columns):
        assert np.abs(data.astype(int)).max() <= 64


@no_cleanup
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 100),
    form=st.sampled_from(FORMS),
    chunk=st.integers(1, 5000),
    seed=st.integers(0, 99),
)
def test_chunks_do_not_matter(tmp_path: Path, rows: int, columns: int, form: Form, chunk: int, seed: int) -> None:
    entry = store(tmp_path, np.random.default_rng(seed).standard_normal((rows, columns)), "BF16")
    whole, whole_scales, _ = produce(entry, form, chunk_bytes=1 << 30)
    data, scales, _ = produce(entry, form, chunk_bytes=chunk)
    np.testing.assert_array_equal(data, whole)
    np.testing.assert_array_equal(scales, whole_scales)


def test_packing_to_the_element(tmp_path: Path) -> None:
    """Integer weights with one -8 (or -128, or 64) in every block come back as they were."""
    rng = np.random.default_rng(0)
    for form, low, high in ((Blocks(4, 16), -8, 8), (Blocks(4, 32), -8, 8), (Blocks(8, 16), -128, 128), (Columns(), -64, 65)):
        weights = rng.integers(low, high, (5, 70)).astype(np.float32)
        weights[:, ::16] = low
        data, scales, _ = produce(store(tmp_path, weights), form)
        np.testing.assert_array_equal(scales, np.ones_like(scales))
        np.testing.assert_array_equal(dequantized(data, scales, form, 70), weights)
    data, scales, _ = produce(store(tmp_path, np.arange(-8, 8, dtype=np.float32)[None]), Blocks(4, 16))
    assert data.tobytes() == bytes([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE])
    # A positive extreme makes the scale negative.
    data, scales, _ = produce(store(tmp_path, -np.arange(-8, 8, dtype=np.float32)[None]), Blocks(4, 16))
    assert scales.tolist() == [[-1.0]] and data.tobytes() == bytes([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE])


def test_against_torch(tmp_path: Path) -> None:
    """int8 per output feature is torch's own per-channel rounding under our scales."""
    import torch

    weights = np.random.default_rng(1).standard_normal((12, 50)).astype(np.float32)
    data, scales, _ = produce(store(tmp_path, weights), Columns())
    expected = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weights), torch.from_numpy(scales.copy()), torch.zeros(12, dtype=torch.int32), 0, -64, 64
    )
    np.testing.assert_allclose(dequantized(data, scales, Columns(), 50), expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(data).max(axis=0), 64)  # the largest weight of a row


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-42, -3e38])
def test_flat_weights(tmp_path: Path, form: Form, value: float) -> None:
    """All zero, too small for a scale, near the largest float: finite scales, no warning, right values."""
    weights = np.full((3, 40), value, np.float32)
    with np.errstate(all="raise", under="ignore"):
        data, scales, _ = produce(store(tmp_path, weights), form)
    assert np.isfinite(scales).all() and (scales != 0).all()
    np.testing.assert_allclose(dequantized(data, scales, form, 40), weights.astype(np.float64), rtol=1e-6, atol=1e-41)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [Columns(), Blocks(4, 32)], ids=str)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_not_finite_is_refused(tmp_path: Path, bad: float, form: Form, dtype: str) -> None:
    weights = np.ones((6, 40), np.float32)
    weights[4, 39] = bad
    entry = store(tmp_path, weights, dtype)
    for tensor in quantized_layout([QuantizedWeight("a.weight", form, 6, 40)]):
        with pytest.raises(CheckpointError, match=r"a\.weight holds NaN or infinity") as caught:
            list(quantized_blocks(entry, tensor))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [Columns(), Blocks(4, 32)], ids=str)
def test_a_file_that_ends_early_is_refused(tmp_path: Path, form: Form) -> None:
    entry = store(tmp_path, np.ones((6, 40), np.float32))
    entry.file.write_bytes(entry.file.read_bytes()[:-8])
    for tensor in quantized_layout([QuantizedWeight("a.weight", form, 6, 40)]):
        with pytest.raises(CheckpointError, match="ended early"):
            list(quantized_blocks(entry, tensor, 64))


def test_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    entry = store(tmp_path, np.ones((6, 40), np.float32))
    tensor = quantized_layout([QuantizedWeight("a.weight", Columns(), 40, 6)])[0]
    with pytest.raises(CheckpointError, match="cannot be quantized"):
        list(quantized_blocks(entry, tensor))


def test_layout_is_a_safetensors_file(tmp_path: Path) -> None:
    """Written as the layout says, the file reads back, every weight is there once, and floats are aligned."""
    weights = np.random.default_rng(2).standard_normal((7, 33)).astype(np.float32)  # odd sizes
    entry = store(tmp_path, weights)
    names: dict[str, Form] = {"a": Columns(), "b": Blocks(4, 16), "c": Blocks(8, 32)}
    plan = [QuantizedWeight(name, form, 7, 33) for name, form in names.items()]
    layout = quantized_layout([*plan, *plan])
    assert sorted(tensor.name for tensor in layout) == sorted(f"{n}.{part}" for n in names for part in ("quantized", "scales"))
    header = encode_header([(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in layout])
    file = tmp_path / "weights.safetensors"
    with file.open("wb") as stream:
        stream.write(header)
        for tensor in layout:
            for block in quantized_blocks(entry, tensor):
                stream.write(block)
    entries, _ = read_header(file)
    assert {name: item.shape for name, item in entries.items()} == {tensor.name: tensor.shape for tensor in layout}
    assert all(item.offset % 4 == 0 for item in entries.values() if item.dtype == "F32")
    with pytest.raises(ValueError, match="wanted as"):
        quantized_layout([plan[0], QuantizedWeight("a", Blocks(4, 16), 7, 33)])


@pytest.mark.parametrize("form", [Columns(), Blocks(4, 32)], ids=str)
def test_memory_is_bounded(tmp_path: Path, form: Form) -> None:
    """A 48 MB tensor with 256 KB chunks: a few chunks, not the tensor."""
    weights = np.random.default_rng(0).standard_normal((3000, 4096), dtype=np.float32)
    entry = store(tmp_path, weights)
    del weights
    layout = quantized_layout([QuantizedWeight("a.weight", form, 3000, 4096)])
    tracemalloc.start()
    try:
        for tensor in layout:
            for _ in quantized_blocks(entry, tensor, 256 << 10):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20


@pytest.mark.parametrize("form", [Blocks(4, 32), Blocks(8, 16), Blocks(8, 128)], ids=str)
def test_rounded_is_what_is_stored(tmp_path: Path, form: Blocks) -> None:
    """The last block is padded, and a row of zeros has no scale."""
    weights = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    weights[3] = 0
    data, scales, _ = produce(store(tmp_path, weights), form)
    np.testing.assert_allclose(block_rounded(weights, form), dequantized(data, scales, form, 70), rtol=1e-6)
