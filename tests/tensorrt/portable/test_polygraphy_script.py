"""What counts as agreement of two engines: by hand, value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sts_export.tensorrt.portable.polygraphy_script import OTHER_ROWS, TOLERANCE, Agreement, agreements
from sts_export.verification.answers import TOLERANCE as VERIFY


def floats(*numbers: float, dtype: Any = np.float32) -> Any:
    return np.array([numbers], dtype)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("float16", 3e-2), ("bfloat16", 1e-1)])
def test_floats_are_close_relative_to_the_largest(precision: str, tolerance: float) -> None:
    reference = {"logits": floats(0.0, -4.0, 2.0)}
    for share, passed in ((0.9, True), (1.1, False)):
        found = agreements({"logits": floats(4 * tolerance * share, -4.0, 2.0)}, reference, precision)["logits"]
        assert (found.kind, bool(found)) == ("float", passed)
        assert found.max_abs == pytest.approx(4 * tolerance * share)
        assert found.max_rel == pytest.approx(tolerance * share)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_on_either_side(value: float) -> None:
    good, bad = {"logits": floats(1.0, 2.0)}, {"logits": floats(1.0, value)}
    with np.errstate(invalid="ignore"):
        assert not agreements(bad, good, "bfloat16")["logits"]
        assert not agreements(good, bad, "bfloat16")["logits"]
        assert not agreements(bad, bad, "bfloat16")["logits"]


def test_zeros_only_equal_zeros() -> None:
    assert agreements({"a": floats(0.0)}, {"a": floats(0.0)}, "float32")["a"]
    assert not agreements({"a": floats(0.01)}, {"a": floats(0.0)}, "float32")["a"]


def test_float16_does_not_overflow() -> None:
    reference = floats(60000.0, -60000.0, dtype=np.float16)
    found = agreements({"a": -reference}, {"a": reference}, "float16")["a"]
    assert not found and found.max_rel == pytest.approx(2.0)


def test_indices_are_equal_or_not() -> None:
    reference = {"last_row": np.array([40000])}
    assert agreements({"last_row": np.array([40000])}, reference, "bfloat16")["last_row"].kind == "index"
    found = agreements({"last_row": np.array([40001])}, reference, "bfloat16")["last_row"]
    assert not found and found.max_abs == 1


def test_other_names_and_shapes_fail() -> None:
    both = {"a": floats(1.0), "b": floats(2.0)}
    assert not all(agreements({"a": both["a"]}, both, "float32").values())
    assert not all(agreements(both, {"a": both["a"]}, "float32").values())
    assert not agreements({"a": floats(1.0, 1.0)}, {"a": floats(1.0)}, "float32")["a"]


def test_what_the_selector_chose_beyond_k_means_nothing() -> None:
    reference = {"kept_index": np.array([1, 4, 7, 8]), "visual_embeds": np.eye(4, dtype=np.float32)}
    actual = {"kept_index": np.array([1, 4, 7, 2]), "visual_embeds": np.diag([1, 1, 1, 9]).astype(np.float32)}
    assert all(agreements(actual, reference, "float32", kept=3).values())
    assert not any(agreements(actual, reference, "float32", kept=4).values())


def lower(rows: list[int]) -> dict[str, Any]:
    """Outputs of LLM-lower in which every row's state is its number."""
    kept = np.array([rows])
    states = np.repeat(kept[:, :, None], 2, axis=2).astype(np.float32)
    positions = np.stack([kept, kept + 1, kept + 2], axis=1)
    return {"hidden_states": states, "kept_rows": kept, "kept_position_ids": positions, "last_row": np.array([len(rows) - 1])}


def test_close_scores_may_flip_in_16_bits_only() -> None:
    """Two text rows around ten of the visual ones; one visual row is another one."""
    rows = [0, *range(10, 20), 99]
    reference, actual = lower(rows), lower([0, *range(10, 19), 25, 99])
    found = agreements(actual, reference, "float16", visual_keep=10)
    assert all(found.values()) and found["kept_rows"].other_rows == pytest.approx(0.1)
    assert found["hidden_states"] == Agreement("float", 0.0, 0.0, True)  # on the rows that both kept
    assert not agreements(actual, reference, "float32", visual_keep=10)["kept_rows"]
    # Two rows are too many, and a state that differs on a common row is still seen.
    assert not agreements(lower([0, *range(10, 18), 25, 26, 99]), reference, "float16", visual_keep=10)["kept_rows"]
    actual["hidden_states"][0, 3] = 50
    assert not agreements(actual, reference, "float16", visual_keep=10)["hidden_states"]
    # A last row that moved is another prompt.
    actual["last_row"] = actual["last_row"] - 1
    assert not agreements(actual, reference, "float16", visual_keep=10)["last_row"]


def test_tolerances_are_those_of_verify() -> None:
    """The script stands alone, so it says them once more."""
    assert {dtype: VERIFY[dtype] for dtype in TOLERANCE} == TOLERANCE
    assert OTHER_ROWS.keys() == TOLERANCE.keys() and OTHER_ROWS["float32"] == 0
