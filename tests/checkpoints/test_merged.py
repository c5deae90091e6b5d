"""Windows and blocks of stored tensors, with and without a low-rank change, against plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sts_export.checkpoints.merged import LowRank, MergedTensor, Reader, blocks
from sts_export.checkpoints.safetensors_header import TensorEntry
from sts_export.errors import CheckpointError

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def store(file: Path, arrays: dict[str, np.ndarray], dtype: str) -> dict[str, TensorEntry]:
    entries, offset = {}, 0
    with file.open("wb") as stream:
        for name, array in arrays.items():
            stream.write(array.tobytes())
            entries[name] = TensorEntry(name, file, dtype, array.shape, offset, array.nbytes)
            offset += array.nbytes
    return entries


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    return {
        "shape": tuple(shape),
        "rank": draw(st.integers(1, 4)),
        "dtype": draw(st.sampled_from(sorted(DTYPES))),
        "transposed": draw(st.booleans()),
        "most": draw(st.integers(1, 60)),
        "seed": draw(st.integers(0, 1000)),
        "rows": sorted(draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0])))),
        "columns": sorted(draw(st.tuples(*[st.integers(0, int(np.prod(shape[1:])))] * 2))),
    }


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_every_window_and_block_is_that_of_the_sum(tmp_path: Path, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    shape, rank, kind = case["shape"], case["rank"], DTYPES[case["dtype"]]
    rows, columns = shape[0], int(np.prod(shape[1:]))
    weight, left, right = (rng.normal(size=size).astype(kind) for size in (shape, (rows, rank), (rank, columns)))
    swap = case["transposed"]
    stored = {"W": weight, "L": left.T.copy() if swap else left, "R": right.T.copy() if swap else right}
    entries = store(tmp_path / "file", stored, case["dtype"])
    plain = entries["W"]
    delta = LowRank(entries["L"], entries["R"], 1.5, left_transposed=swap, right_transposed=swap)
    merged = MergedTensor(plain.name, plain.file, plain.dtype, plain.shape, plain.offset, plain.nbytes, delta)
    matrix = weight.reshape(rows, columns).astype(np.float64)
    total = matrix + 1.5 * left.astype(np.float64) @ right.astype(np.float64)
    chosen = range(*case["rows"]), range(*case["columns"])
    part = np.s_[chosen[0].start : chosen[0].stop, chosen[1].start : chosen[1].stop]
    for entry, expected, result in ((plain, matrix, kind), (merged, total, np.float32)):
        with entry.file.open("rb", buffering=0) as stream:
            window = Reader(stream, entry).window(*chosen)
        assert window.dtype == result
        np.testing.assert_allclose(window.astype(np.float64), expected[part], rtol=1e-5, atol=1e-5)
        found = list(blocks(entry, case["most"]))
        assert all(len(block) <= max(case["most"], columns if entry is merged else 1) for block in found)
        np.testing.assert_allclose(np.concatenate(found).astype(np.float64), expected.reshape(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("missing", ["W", "R"])
def test_a_file_that_ends_early(tmp_path: Path, missing: str) -> None:
    arrays = {"L": np.ones((4, 2), np.float32), "R": np.ones((2, 5), np.float32), "W": np.ones((4, 5), np.float32)}
    entries = store(tmp_path / "file", arrays, "F32")
    with (tmp_path / "file").open("r+b") as stream:
        stream.truncate(entries[missing].offset + 4)
    w = entries["W"]
    merged = MergedTensor(w.name, w.file, w.dtype, w.shape, w.offset, w.nbytes, LowRank(entries["L"], entries["R"], 1.0))
    with pytest.raises(CheckpointError, match=f"ended early in {missing}; download or copy it again"):
        list(blocks(merged, 100))
