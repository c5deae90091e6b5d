"""Stage 2 of plugins/kernels to the index: against the equations in numpy, the reference, and the ONNX function's body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sts_export.reference import last_token_topk as reference_topk
from tests.graphs.onnx_models import TYPES
from tests.plugins.kernels import DTYPES, LAST_TOKEN, Invalid, Kernels
from tests.plugins.reference import last_token_topk
from tests.pruning.stage2.test_last_token import topk_session

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return rng.standard_normal(shape).astype(dtype)


class Prompt:
    """Requests padded on the right, visual rows anywhere before the last text, some of the keys repeated."""

    def __init__(self, rng: np.random.Generator, dtype: Any, *, magnitude: float = 1.0, visual: int | None = None) -> None:
        kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        batch, width = int(rng.integers(1, 4)), int(rng.choice([1, 2, 7, 8, 16, 24, 64, 72]))
        self.visual = int(rng.integers(1, 60)) if visual is None else visual
        self.keep = int(rng.choice([1, self.visual])) if rng.random() < 0.3 else int(rng.integers(1, self.visual + 1))
        before, after = rng.integers(0, 7, batch), rng.integers(1, 7, batch)
        lengths = before + self.visual + after
        self.rows = int(lengths.max() + rng.integers(0, 40) * (rng.random() < 0.3))
        self.query = (rng.standard_normal((batch, kv_heads * group, self.rows, width)) * magnitude).astype(dtype)
        self.key = (rng.standard_normal((batch, kv_heads, self.rows, width)) * magnitude).astype(dtype)
        if rng.random() < 0.5:
            self.key = self.key[:, :, rng.integers(0, self.rows, self.rows)]
        self.mask = (np.arange(self.rows) < lengths[:, None]).astype(np.int64)
        self.visual_mask = np.zeros((batch, self.rows), bool)
        for request, text in enumerate(before):
            self.visual_mask[request, rng.choice(text + self.visual, self.visual, replace=False)] = True
        self.scale = float(width**-0.5)

    def run(self, kernels: Kernels) -> tuple[list[list[int]], list[int]]:
        arguments = (self.query, self.key, self.mask, self.visual_mask, self.visual, self.keep, self.scale)
        kept, last = kernels.topk(*arguments)
        return kept.tolist(), last.tolist()

    def function_body(self) -> tuple[list[list[int]], list[int]]:
        """The ONNX function on ONNX Runtime."""
        feeds = {
            "query": self.query,
            "key": self.key,
            "attention_mask": self.mask,
            "visual_mask": self.visual_mask,
            "visual_embeds": np.zeros((len(self.query), self.visual, 1), self.query.dtype),
            "stage2_slots": np.zeros(self.keep, np.int64),
        }
        kept, last = topk_session(self.scale, TYPES[self.query.dtype.name]).run(None, feeds)
        return kept.tolist(), last.tolist()

    def expected(self, request: int) -> tuple[list[int], int, bool]:
        visual, keep = self.visual_mask[request], self.keep
        return last_token_topk(self.query[request], self.key[request], self.mask[request], visual, keep, self.scale)


@dtypes
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 5.0, 100.0])
def test_random_attention(host: Kernels, device: Kernels, dtype: Any, magnitude: float) -> None:
    """Wherever float32 can tell the winners; where it cannot, both sides agree nevertheless."""
    rng = np.random.default_rng(int(magnitude * 1e4))
    clear = total = 0
    for trial in range(100):
        prompt = Prompt(rng, dtype, magnitude=magnitude)
        kept, last = prompt.run(host)
        if trial % 10 == 0:
            assert (kept, last) == prompt.run(device)
        for request in range(len(kept)):
            assert kept[request] == sorted(set(kept[request]))
            rows, last_row, proven = prompt.expected(request)
            assert last[request] == last_row or not proven
            if proven:
                assert kept[request] == rows
            clear, total = clear + proven, total + 1
    # Tiny logits give scores that float32 cannot tell apart; huge ones round by more than 1, or give no probability at all.
    assert clear > {1e-4: 0.1, 1.0: 0.95, 5.0: 0.9, 100.0: 0.2}[magnitude] * total


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: dtype.name)
def test_like_the_function_body(host: Kernels, dtype: Any) -> None:
    rng = np.random.default_rng(21)
    clear = 0
    for _ in range(100):
        prompt = Prompt(rng, dtype)
        if all(prompt.expected(request)[2] for request in range(len(prompt.query))):
            assert prompt.run(host) == prompt.function_body()
            clear += 1
    assert clear > 80


@dtypes
def test_like_the_reference(host: Kernels, dtype: Any) -> None:
    """Shapes of a 7B model: multi-head, grouped and multi-query attention."""
    rng = np.random.default_rng(30)
    for heads, kv_heads, rows, visual, keep in ((32, 32, 131, 96, 32), (28, 4, 700, 576, 64), (8, 1, 300, 200, 200)):
        query = normal(rng, 1, heads, rows, 128, dtype=dtype)
        key = normal(rng, 1, kv_heads, rows, 128, dtype=dtype)
        visual_mask = (np.arange(rows) >= 5) & (np.arange(rows) < 5 + visual)
        mask = (np.arange(rows) < rows - 3).astype(np.int64)
        expected = last_token_topk(query[0], key[0], mask, visual_mask, keep, 128**-0.5)
        assert expected.clear, "choose another seed: rounding decides here"
        kept, last = host.topk(query, key, mask[None], visual_mask[None], visual, keep, 128**-0.5)
        assert (kept[0].tolist(), last[0]) == (expected.kept_rows, expected.last_row)
        asked, told = (torch.from_numpy(array[0].astype(np.float32)) for array in (query, key))
        real = torch.from_numpy(mask != 0)
        own = reference_topk(asked, told, torch.from_numpy(visual_mask), keep, real=real, scale=128**-0.5)
        assert [row - 5 for row in kept[0] if visual_mask[row]] == own.tolist()


@dtypes
def test_ties_go_to_the_lowest_row(kernels: Kernels, dtype: Any) -> None:
    """Of two kinds of keys, in any order: all scores of a kind tie."""
    rng = np.random.default_rng(41)
    for visual in (3, 31, 32, 33, 150):
        rows = visual + 7
        kinds = normal(rng, 1, 2, 2, 16, dtype=dtype)
        kind = rng.integers(0, 2, rows)
        query = normal(rng, 1, 4, rows, 16, dtype=dtype)
        visual_mask = ((np.arange(rows) >= 2) & (np.arange(rows) < 2 + visual))[None]
        mask = np.ones((1, rows), np.int64)
        for keep in {1, visual // 2, visual - 1, visual}:
            expected = last_token_topk(query[0], kinds[0][:, kind], mask[0], visual_mask[0], keep, 0.25)
            assert expected.clear
            kept, last = kernels.topk(query, kinds[:, :, kind], mask, visual_mask, visual, keep, 0.25)
            assert (kept[0].tolist(), last[0]) == (expected.kept_rows, expected.last_row)


def test_equal_keys_keep_the_first_rows(kernels: Kernels) -> None:
    query, key = np.ones((1, 2, 90, 8), np.float16), np.full((1, 1, 90, 8), 0.1, np.float16)
    visual_mask = (np.arange(90) % 2 == 0)[None]
    kept, last = kernels.topk(query, key, np.ones((1, 90), np.int64), visual_mask, 45, 20, 0.3)
    assert kept[0].tolist() == sorted([*range(0, 40, 2), *range(1, 90, 2)]) and last == [64]


def test_scores_that_vanish_tie(kernels: Kernels) -> None:
    """Logits more than 104 below the largest have probability 0 in float32, like padding."""
    query, key = np.zeros((1, 1, 12, 1), np.float32), np.zeros((1, 1, 12, 1), np.float32)
    query[..., 0], key[0, 0, :, 0] = 1, [-500, -300, 0, -200, -400, -1, -600, -700, -150, -800, 0, 50]
    mask, visual_mask = np.ones((1, 12), np.int64), (np.arange(12) < 10)[None]
    mask[0, 11] = 0
    kept, last = kernels.topk(query, key, mask, visual_mask, 10, 4, 1.0)
    assert kept[0].tolist() == [0, 1, 2, 5, 10, 11] and last == [4]


@pytest.mark.parametrize(("rows", "keep"), [(1, 1), (2, 1), (7, 1), (7, 5), (33, 1), (300, 1), (300, 5)])
def test_text_and_decode_keep_every_row(kernels: Kernels, rows: int, keep: int) -> None:
    """No visual row but a dummy embedding; more of either than there are visual rows changes nothing."""
    rng = np.random.default_rng(rows)
    query, key = normal(rng, 2, 4, rows, 8), normal(rng, 2, 2, rows, 8)
    mask = np.ones((2, rows), np.int64)
    mask[1, max(1, rows - 1) :] = 0
    kept, last = kernels.topk(query, key, mask, np.zeros((2, rows), bool), keep, keep, 0.5)
    assert kept.tolist() == [list(range(rows))] * 2 and last.tolist() == [rows - 1, max(1, rows - 1) - 1]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: dtype.name)
def test_visual_rows_that_are_not_those_announced(host: Kernels, device: Kernels, dtype: Any) -> None:
    """Requests with fewer or more visual rows than visual_embeds has, or with no real row: as the function's body."""
    rng = np.random.default_rng(51)
    clear = 0
    for trial in range(120):
        prompt = Prompt(rng, dtype)
        prompt.visual_mask = rng.random(prompt.visual_mask.shape) < rng.choice([0.0, 0.3, 1.0])
        prompt.mask[:, rng.integers(0, prompt.rows) :] *= int(rng.integers(0, 2))
        if trial % 8 == 0:
            assert prompt.run(host) == prompt.run(device)
        if all(prompt.expected(request)[2] for request in range(len(prompt.query))):
            assert prompt.run(host) == prompt.function_body()
            clear += 1
    assert clear > 90


def test_padding_on_the_left_and_gaps(kernels: Kernels) -> None:
    """The last real row counts wherever padding is; a gap in the mask is not attended."""
    rng = np.random.default_rng(61)
    for _ in range(12):
        query, key = normal(rng, 1, 4, 50, 8), normal(rng, 1, 2, 50, 8)
        mask = (rng.random((1, 50)) < 0.5).astype(np.int64)
        mask[0, :10] = 0
        visual_mask = ((np.arange(50) >= 12) & (np.arange(50) < 40))[None]
        expected = last_token_topk(query[0], key[0], mask[0], visual_mask[0], 8, 0.35)
        kept, last = kernels.topk(query, key, mask, visual_mask, 28, 8, 0.35)
        assert expected.clear and (kept[0].tolist(), last[0]) == (expected.kept_rows, expected.last_row)


def test_padding_is_never_read(kernels: Kernels) -> None:
    rng = np.random.default_rng(71)
    query, key = normal(rng, 1, 2, 40, 8), normal(rng, 1, 2, 40, 8)
    mask, visual_mask = (np.arange(40) < 30).astype(np.int64)[None], (np.arange(40) < 20)[None]
    before = kernels.topk(query, key, mask, visual_mask, 20, 5, 0.35)
    query[:, :, 30:], key[:, :, 30:] = np.nan, np.nan
    query[:, :, :29] = np.nan
    after = kernels.topk(query, key, mask, visual_mask, 20, 5, 0.35)
    assert before[0].tolist() == after[0].tolist() and before[1] == after[1]


def test_values_that_are_no_numbers(kernels: Kernels) -> None:
    """Some rows survive, each once and ascending."""
    rng = np.random.default_rng(81)
    for value in (np.nan, np.inf, -np.inf, 3e38):
        query, key = normal(rng, 1, 4, 60, 8), normal(rng, 1, 2, 60, 8)
        key[0, 1, ::7, 3], query[0, 2, -1, 0] = value, value
        visual_mask = (np.arange(60) < 50)[None]
        kept, last = kernels.topk(query, key, np.ones((1, 60), np.int64), visual_mask, 50, 13, 1.0)
        assert kept[0].tolist() == sorted(set(kept[0])) and set(range(50, 60)) < set(kept[0]) and last == [22]


@pytest.mark.parametrize("rows", [16384, 20000])
def test_many_rows(host: Kernels, rows: int) -> None:
    rng = np.random.default_rng(rows)
    query, key = normal(rng, 1, 2, rows, 4, dtype=np.float16), normal(rng, 1, 1, rows, 4, dtype=np.float16)
    visual_mask = (np.arange(rows) >= 10) & (np.arange(rows) < rows - 40)
    for keep in (1, 1638, rows - 51):
        expected = last_token_topk(query[0], key[0], np.ones(rows, np.int64), visual_mask, keep, 0.5)
        kept, last = host.topk(query, key, np.ones((1, rows), np.int64), visual_mask[None], rows - 50, keep, 0.5)
        if expected.clear:
            assert (kept[0].tolist(), last[0]) == (expected.kept_rows, expected.last_row)
        assert len(set(kept[0])) == 50 + keep


def test_more_rows_than_threads_on_the_device(host: Kernels, device: Kernels) -> None:
    rng = np.random.default_rng(91)
    query, key = normal(rng, 1, 3, 2500, 8, dtype=np.float16), normal(rng, 1, 1, 2500, 8, dtype=np.float16)
    mask, visual_mask = (np.arange(2500) < 900).astype(np.int64)[None], (np.arange(2500) % 5 != 0)[None]
    arguments = (query, key, mask, visual_mask, 2000, 700, 0.35)
    for one, other in zip(host.topk(*arguments), device.topk(*arguments), strict=True):
        assert (one == other).all()


VALID = {"heads": 4, "kv_heads": 2, "rows": 6, "width": 8, "visual": 3, "keep": 2, "scale": 0.5}


@pytest.mark.parametrize(
    "change",
    [{"kv_heads": 3}, {"visual": 7}, {"visual": 0}, {"keep": 4}, {"keep": 0}, {"scale": np.nan}, {"width": 0}, {"heads": 0}],
    ids=str,
)
def test_what_is_refused(kernels: Kernels, change: dict[str, Any]) -> None:
    of: dict[str, Any] = {**VALID, **change}
    query, key = (np.ones((1, of[heads], of["rows"], of["width"]), np.float32) for heads in ("heads", "kv_heads"))
    mask: NDArray[np.int64] = np.ones((1, of["rows"]), np.int64)
    with pytest.raises(Invalid):
        kernels.topk(query, key, mask, mask.astype(bool), of["visual"], of["keep"], of["scale"])


def test_workspace_never_decreases(host: Kernels) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        kv_heads, rows = int(rng.integers(1, 9)), int(rng.integers(50, 20000))
        shape = [int(rng.integers(1, 9)), kv_heads * int(rng.integers(1, 9)), kv_heads, rows, int(rng.integers(1, 300)), 50, 20]
        larger = [value + int(rng.integers(0, 3)) for value in shape]
        larger[1:3], larger[6] = [shape[1] + kv_heads * int(rng.integers(0, 3)), kv_heads], shape[6]
        assert 0 < host.workspace_size(LAST_TOKEN, *shape) <= host.workspace_size(LAST_TOKEN, *larger)
