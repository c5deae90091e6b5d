"""Stage 1 of plugins/kernels to the index: against the equations in numpy, the reference, and the ONNX function's body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sts_export.reference import repulsion_trace
from tests.plugins.kernels import DTYPES, REPULSION, Invalid, Kernels
from tests.plugins.reference import exact_gram_case, exact_repulsion, repulsion
from tests.pruning.stage1.test_repulsion import choices as function_body

EPSILON = 1e-6
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def everything(rows: int, crops: int = 1) -> NDArray[np.bool_]:
    return np.ones((crops, rows), bool)


def random_shape(rng: np.random.Generator, most: int) -> tuple[int, int, int]:
    """rows, width, steps; the borders of tiles, vectors and warps more often than by chance."""
    rows = int(rng.choice([1, 2, 31, 32, 33, 64, 65])) if rng.random() < 0.3 else int(rng.integers(1, most))
    width = int(rng.choice([1, 7, 8, 9, 63, 64, 65, 72])) if rng.random() < 0.3 else int(rng.integers(1, 40))
    steps = int(rng.choice([1, rows])) if rng.random() < 0.3 else int(rng.integers(1, rows + 1))
    return rows, width, steps


@dtypes
@pytest.mark.parametrize("magnitude", [1e-40, 1e-4, 1.0, 1e4])
def test_random_features(host: Kernels, device: Kernels, dtype: Any, magnitude: float) -> None:
    """Every choice that float32 can tell is made, on both sides; where it cannot, both sides agree nevertheless."""
    rng = np.random.default_rng(int(np.log10(magnitude)) + 100)
    compared = total = 0
    for trial in range(100):
        rows, width, steps = random_shape(rng, 48)
        crops = int(rng.integers(1, 3))
        epsilon = float(rng.choice([1e-6, 1e-2, 1.0]))
        offset = 3 * rng.standard_normal(width)  # of all features: distances do not depend on it
        with np.errstate(over="ignore"):
            features = ((rng.standard_normal((crops, rows, width)) + offset) * magnitude).astype(dtype)
        if rng.random() < 0.5:  # duplicates
            features = features[:, rng.integers(0, rows, rows)]
        features = np.nan_to_num(features.astype(np.float32), posinf=65504, neginf=-65504).astype(dtype)
        candidates = rng.random((crops, rows)) < rng.choice([0.5, 1.0])
        first = rng.integers(0, rows, crops).tolist()
        candidates[np.arange(crops), first] = True
        found = host.repulsion(features, first, steps, candidates, epsilon)
        if trial % 4 == 0:
            assert (found == device.repulsion(features, first, steps, candidates, epsilon)).all()
        for crop in range(crops):
            expected = repulsion(features[crop], first[crop], steps, candidates[crop], epsilon)
            assert found[crop, : expected.clear].tolist() == expected.chosen[: expected.clear]
            compared, total = compared + expected.clear, total + len(expected.chosen)
    # Far below epsilon all potentials are alike; far above it those of copies of chosen rows are.
    assert compared > (0.8 if magnitude >= 1 else 0) * total


@dtypes
def test_integer_features(host: Kernels, device: Kernels, dtype: Any) -> None:
    """Exact distances: no choice is excused, and ties abound."""
    rng = np.random.default_rng(3)
    for trial in range(600):
        rows, width, steps = random_shape(rng, 48)
        span = int(rng.choice([1, 2, 5, 100]))
        features = rng.integers(-span, span + 1, (1, rows, width)).astype(dtype)
        candidates = rng.random((1, rows)) < rng.choice([0.3, 1.0])
        first = int(rng.integers(0, rows))
        candidates[0, first] = True
        steps = min(steps, int(candidates.sum()))
        epsilon = float(rng.choice([1e-6, 0.5, 2.0]))
        expected = exact_repulsion(features[0], first, steps, candidates[0], epsilon)
        assert host.repulsion(features, [first], steps, candidates, epsilon)[0].tolist() == expected
        if trial % 6 == 0:
            assert device.repulsion(features, [first], steps, candidates, epsilon)[0].tolist() == expected


@pytest.mark.parametrize("by_row", [False, True], ids=["matrix", "by_row"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: dtype.name)
def test_like_the_function_body(host: Kernels, dtype: Any, by_row: bool) -> None:
    """The same choices as the ONNX function, where its Gram matrix is exact: integers, with an even number of rows and their
    negatives, so that the mean is 0."""
    rng = np.random.default_rng(5)
    for _ in range(150):
        features, first, steps, candidates = exact_gram_case(rng, dtype)
        # Even where candidates run out: what is taken keeps the same potentials.
        expected = function_body(features, first, steps, EPSILON, candidates, by_row=by_row)
        assert host.repulsion(features, first, steps, candidates).tolist() == expected


def test_like_the_reference(host: Kernels) -> None:
    """LLaVA-1.5's counts in the reference implementation, with an offset as vision towers have."""
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((1, 576, 64)) + 2 * rng.standard_normal(64)).astype(np.float32)
    trace = repulsion_trace(torch.from_numpy(features[0]), 96)
    proven = repulsion(features[0], int(trace.order[0]), 96, everything(576)[0], EPSILON)
    assert proven.clear == 96, "choose another seed: rounding decides here"
    assert host.repulsion(features, None, 96)[0].tolist() == trace.order.tolist()


@dtypes
def test_equal_rows_are_chosen_in_order(kernels: Kernels, dtype: Any) -> None:
    for rows in (1, 9, 70):
        features = np.full((2, rows, 5), 0.3, dtype)
        others = [row for row in range(rows) if row != rows // 2]
        expected = [[rows // 2, *others], [0, *range(1, rows)]]
        assert kernels.repulsion(features, [rows // 2, 0], rows).tolist() == expected


@dtypes
def test_copies_of_a_row_are_at_no_distance(kernels: Kernels, dtype: Any) -> None:
    """Large copies with digits that float32 rounds: every kind is chosen once before any of them comes again."""
    kinds = (np.random.default_rng(2).standard_normal((40, 100)) * 3000).astype(dtype)
    chosen = kernels.repulsion(np.tile(kinds, (2, 1))[None], [47], 80)[0]
    assert sorted(row % 40 for row in chosen[:40]) == sorted(row % 40 for row in chosen[40:]) == list(range(40))


def test_a_large_offset_does_not_cancel(kernels: Kernels) -> None:
    """Distances of about 10 between points at 2000, exact in float32; the products of a Gram matrix are not."""
    features = (np.random.default_rng(3).integers(-20, 21, (1, 48, 8)) / 8 + 2000).astype(np.float32)
    assert kernels.repulsion(features, [7], 48)[0].tolist() == exact_repulsion(features[0], 7, 48, everything(48)[0], EPSILON)


@dtypes
def test_the_anchor_is_closest_to_the_mean_of_the_candidates(host: Kernels, device: Kernels, dtype: Any) -> None:
    rng = np.random.default_rng(9)
    for trial in range(60):
        rows, width, _ = random_shape(rng, 90)
        features = rng.standard_normal((2, rows, width)).astype(dtype)
        if rng.random() < 0.5:
            features = features[:, rng.integers(0, rows, rows)]
        candidates = rng.random((2, rows)) < 0.7
        found = host.repulsion(features, None, 1, candidates)
        if trial % 4 == 0:
            assert (found == device.repulsion(features, None, 1, candidates)).all()
        for crop, mask, (anchor,) in zip(features.astype(np.float64), candidates, found, strict=True):
            if not mask.any():
                assert anchor == 0
                continue
            distance = ((crop - crop[mask].mean(axis=0)) ** 2).sum(axis=1)
            closest = np.flatnonzero(mask & (distance <= distance[mask].min() * (1 + 1e-5) + 1e-12))
            assert mask[anchor] and anchor in closest
            if (crop[closest] == crop[closest[0]]).all():  # one, or copies of one
                assert anchor == closest[0]


def test_candidates_that_run_out(kernels: Kernels) -> None:
    """What follows the last candidate is some row; other crops do not notice."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((3, 40, 6)).astype(np.float32)
    candidates = np.zeros((3, 40), bool)
    candidates[0, [3, 30]] = candidates[2] = True
    chosen = kernels.repulsion(features, [30, 5, 1], 40, candidates)
    assert chosen[0, :2].tolist() == [30, 3] and ((chosen >= 0) & (chosen < 40)).all()
    assert chosen[2].tolist() == kernels.repulsion(features[2:], [1], 40)[0].tolist()


def test_without_a_mask_all_rows_are_candidates(kernels: Kernels) -> None:
    features = np.random.default_rng(6).standard_normal((2, 37, 9)).astype(np.float16)
    assert (kernels.repulsion(features, [1, 2], 20) == kernels.repulsion(features, [1, 2], 20, everything(37, 2))).all()


def test_values_that_are_no_numbers(kernels: Kernels) -> None:
    """Infinities and NaN give some rows, and nothing else happens."""
    features = np.random.default_rng(8).standard_normal((1, 40, 9)).astype(np.float32)
    features[0, ::3, 1], features[0, 1::3, 2] = np.inf, np.nan
    for first in ([0], [5], None):
        chosen = kernels.repulsion(features, first, 40)
        assert ((chosen >= 0) & (chosen < 40)).all()


@pytest.mark.parametrize("first", [-1, 40, 2**62, -(2**62)])
def test_a_first_row_out_of_range_reads_nothing_else(kernels: Kernels, first: int) -> None:
    features = np.random.default_rng(8).standard_normal((1, 40, 9)).astype(np.float32)
    chosen = kernels.repulsion(features, [first], 40)
    assert sorted(chosen[0]) == list(range(40))


@pytest.mark.parametrize("rows", [992, 1056])
def test_more_rows_than_threads(device: Kernels, rows: int) -> None:
    features = np.random.default_rng(rows).integers(-4, 5, (1, rows, 3)).astype(np.float16)
    expected = exact_repulsion(features[0], rows - 1, 30, everything(rows)[0], EPSILON)
    assert device.repulsion(features, [rows - 1], 30)[0].tolist() == expected


@dtypes
def test_many_rows(host: Kernels, dtype: Any) -> None:
    """Above 4096 rows there is no matrix: every step computes its own distances."""
    rng = np.random.default_rng(11)
    for rows, width, steps in ((4097, 20, 40), (16384, 11, 60), (16384, 8, 1)):
        features = rng.integers(-6, 7, (1, rows, width)).astype(dtype)
        candidates = rng.random((1, rows)) < 0.8
        first = int(np.flatnonzero(candidates[0])[-1])
        expected = exact_repulsion(features[0], first, steps, candidates[0], EPSILON)
        assert host.repulsion(features, [first], steps, candidates)[0].tolist() == expected


@pytest.mark.parametrize(("dtype", "width", "first"), [(np.float16, 16, [4099, 3]), (np.float32, 261, None)])
def test_many_rows_on_the_device(device: Kernels, host: Kernels, dtype: Any, width: int, first: list[int] | None) -> None:
    rng = np.random.default_rng(12)
    features = rng.standard_normal((2, 4100, width)).astype(dtype)
    candidates = rng.random((2, 4100)) < 0.8
    assert (device.repulsion(features, first, 3, candidates) == host.repulsion(features, first, 3, candidates)).all()


def test_many_equal_rows(host: Kernels) -> None:
    """Every choice is a tie, of all blocks."""
    features = np.ones((1, 4200, 1), np.float16)
    assert host.repulsion(features, [100], 300)[0].tolist() == [100, *range(100), *range(101, 300)]


def test_from_a_gram_matrix(host: Kernels, device: Kernels) -> None:
    """Products of integers: the same choices as from the features; norms and products of copies cancel exactly."""
    rng = np.random.default_rng(13)
    for trial in range(120):
        rows, width, steps = random_shape(rng, 48)
        features = rng.integers(-5, 6, (2, rows, width)).astype(np.float32)
        gram = np.einsum("cik,cjk->cij", features, features)
        candidates = everything(rows, 2)
        candidates[:, rng.integers(0, rows)] = False
        first = rng.integers(0, rows, 2).tolist()
        expected = host.repulsion(features, first, steps, candidates)
        assert (host.repulsion_from_gram(gram, first, steps, candidates) == expected).all()
        if trial % 6 == 0:
            assert (device.repulsion_from_gram(gram, first, steps, candidates) == expected).all()


@pytest.mark.parametrize("rows", [1024, 1025, 2100, 3072, 3100, 4096, 4100])
def test_from_a_large_gram_matrix(host: Kernels, device: Kernels, rows: int) -> None:
    """One to four rows a thread, and many blocks."""
    features = np.random.default_rng(rows).integers(-9, 10, (1, rows, 2)).astype(np.float32)
    gram = features @ features.transpose(0, 2, 1)
    expected = exact_repulsion(features[0], rows - 5, 12, everything(rows)[0], EPSILON)
    assert host.repulsion_from_gram(gram, [rows - 5], 12)[0].tolist() == expected
    assert device.repulsion_from_gram(gram, [rows - 5], 12)[0].tolist() == expected


def test_a_gram_matrix_does_not_tell_the_anchor(kernels: Kernels) -> None:
    with pytest.raises(Invalid):
        kernels.repulsion_from_gram(np.ones((1, 3, 3), np.float32), None, 2)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"steps": 5}, {"epsilon": 0.0}, {"epsilon": -1.0}, {"epsilon": float("nan")}, {"epsilon": float("inf")}],
    ids=str,
)
def test_what_is_refused(kernels: Kernels, change: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        kernels.repulsion(np.ones((1, 4, 2), np.float32), [0], **{"steps": 2, **change})


@pytest.mark.parametrize("shape", [(0, 4, 2), (1, 0, 2), (1, 4, 0)])
def test_empty_shapes_are_refused(kernels: Kernels, shape: tuple[int, ...]) -> None:
    with pytest.raises(Invalid):
        kernels.repulsion(np.ones(shape, np.float32), [0] * shape[0], 1)


def test_workspace_never_decreases(host: Kernels) -> None:
    """The largest shape of an engine's profile covers all others."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        rows = int(rng.choice([100, 4000, 4096, 4097, 9000, 16384]))
        shape = [int(rng.integers(1, 9)), rows, int(rng.integers(1, 4096)), int(rng.integers(1, rows + 1))]
        larger = [value + int(rng.integers(0, 3)) * step for value, step in zip(shape, (1, 97, 300, 11), strict=True)]
        larger[1] = max(larger[1], larger[3])
        assert 0 < host.workspace_size(REPULSION, *shape) <= host.workspace_size(REPULSION, *larger)
