"""What the selector makes of a stage's choice: CLS tokens, rows that stand last, merged rows, and what stages are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sts_export.graphs.configs import ProjectorConfig
from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.needs import CLS_FEATURES, GRID, PROJECTED, SEED, TEXT
from sts_export.graphs.selector import TextTable, selector
from sts_export.graphs.stages import Stage1Choice, Stage1Inputs
from tests.graphs.onnx_models import bind, random_weights, session

ROWS, WIDTH, HIDDEN = 7, 4, 6
FEATURES = TensorSpec("visual_features", ("crops", ROWS, WIDTH), "float32")
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "width": WIDTH, "prefix": "p", "max_crops": 3, "max_rows": ROWS}

fuzz = settings(max_examples=100, deadline=None, derandomize=True)


def told(name: str) -> TensorSpec:
    """An input by which a test tells the stage what to choose, as if the tower gave it."""
    return TensorSpec(name, ("crops", "steps"), "int64")


def graph(*, cls: bool) -> Any:
    """A selector whose stage chooses what it is told, and merges rows by taking twice the features."""

    def stage(op: Any, inputs: Stage1Inputs) -> Stage1Choice:
        last = op.Cast(inputs.tower["last"], to=ir.DataType.BOOL)
        doubled = op.Add(inputs.features, inputs.features)
        return Stage1Choice(op.Identity(inputs.tower["chosen"]), doubled, op.Identity(inputs.tower["joined"]), last)

    given_by_test = [told("chosen"), told("last"), TensorSpec("joined", ("crops", ROWS), "int64")]
    tower = [FEATURES, *given_by_test, *([TensorSpec(CLS_FEATURES, ("crops", WIDTH), "float32")] if cls else [])]
    needs = frozenset({CLS_FEATURES}) if cls else frozenset()
    return session(selector(tower, None, "float32", stage1=stage, needs=needs, merges=True, **SIZES))


GRAPHS = {cls: graph(cls=cls) for cls in (False, True)}


@fuzz
@given(st.data(), st.booleans())
def test_kept_tokens_stand_in_the_order_of_the_prompt(data: st.DataObject, cls: bool) -> None:
    crops = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    order = rng.permutation(crops * ROWS)[: data.draw(st.integers(crops, crops * ROWS))]
    of_crop = [[int(row) % ROWS for row in order if row // ROWS == crop] for crop in range(crops)]
    chosen_of, last_of = [], []
    for rows in of_crop:
        choice = rng.permutation(rows)[: int(rng.integers(0, len(rows) + 1))].tolist()
        choice += [ROWS] if cls and rng.random() < 0.6 else []
        chosen_of.append([int(row) for row in rng.permutation(choice)])
        last_of.append([bool(rng.random() < 0.4) and row != ROWS for row in chosen_of[-1]])
    steps = max(1, *map(len, chosen_of)) + 1
    if (kept := sum(map(len, chosen_of))) > len(order):
        return
    chosen, last = np.full((crops, steps), ROWS - 1), np.zeros((crops, steps), np.int64)
    for crop, (rows, lasts) in enumerate(zip(chosen_of, last_of, strict=True)):
        chosen[crop, : len(rows)], last[crop, : len(rows)] = rows, lasts
    quota = np.arange(steps) < np.array([len(rows) for rows in chosen_of])[:, None]
    joined = np.full((crops, ROWS), -1)
    for crop, rows in enumerate(of_crop):
        for row in rows:
            joined[crop, row] = rng.choice([-1, *rows])
    features, cls_rows = rng.standard_normal((crops, ROWS, WIDTH)), rng.standard_normal((crops, WIDTH))
    feeds = {"visual_features": features, "token_order": order, "quota": quota}
    feeds |= {"chosen": chosen, "last": last, "joined": joined}
    feeds |= {CLS_FEATURES: cls_rows} if cls else {}
    typed = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in feeds.items()}
    index, embeds, merged = GRAPHS[cls].run(["kept_index", "visual_embeds", "merged_into"], typed)

    number = {int(row): place for place, row in enumerate(order)}
    expected = []  # (behind all others, number)
    for crop in range(crops):
        for row, is_last in zip(chosen_of[crop], last_of[crop], strict=True):
            expected.append((is_last, crop - crops if row == ROWS else number[crop * ROWS + row]))
    expected.sort()
    assert index[:kept].tolist() == [token for _, token in expected]
    rows_of = [cls_rows[token + crops] if token < 0 else 2 * features.reshape(-1, WIDTH)[order[token]] for _, token in expected]
    np.testing.assert_allclose(embeds[:kept], np.array(rows_of).reshape(-1, WIDTH), rtol=0, atol=1e-5)
    targets = [joined[row // ROWS, row % ROWS] for row in order]
    assert merged.tolist() == [
        -1 if target < 0 else number[int(row) // ROWS * ROWS + int(target)] for row, target in zip(order, targets, strict=True)
    ]


def test_a_stage_is_given_what_it_needs() -> None:
    """Projected rows, embeddings of the text, seed and grid come to the stage as they are; it chooses by all of them."""

    def stage(op: Any, inputs: Stage1Inputs) -> Stage1Choice:
        assert inputs.projected is not None and inputs.text is not None
        assert inputs.seed is not None and inputs.columns is not None
        axis0, axis2 = (op.Constant(value_ints=[axis]) for axis in (0, 2))
        scores = op.ReduceSum(op.Mul(inputs.projected, op.ReduceSum(inputs.text, axis0, keepdims=1)), axis2, keepdims=0)
        shift = op.Cast(op.Add(inputs.seed, inputs.columns), to=ir.DataType.FLOAT)
        scores = op.Mul(scores, shift)
        _, chosen = op.TopK(scores, op.Shape(inputs.quota, start=1, end=2), axis=1, _outputs=["best", "chosen"])
        return Stage1Choice(chosen)

    model = selector(
        [FEATURES],
        ProjectorConfig(WIDTH, HIDDEN, "gelu"),
        "float32",
        stage1=stage,
        needs=frozenset({PROJECTED, TEXT, SEED, GRID}),
        text=TextTable("language_model.model", 11),
        **{**SIZES, "hidden_size": HIDDEN},
    )
    weights = random_weights(model)
    assert weights["language_model.model.embed_tokens.weight"].shape == (11, HIDDEN)
    bind(model, weights)
    rng = np.random.default_rng(3)
    features = rng.standard_normal((1, ROWS, WIDTH)).astype(np.float32)
    ids, order = np.array([3, 9, 3]), np.arange(ROWS)
    feeds: dict[str, NDArray[Any]] = {
        "visual_features": features,
        "token_order": order,
        "quota": np.ones((1, 3), bool),
        "text_ids": ids,
        "seed": np.array([-5]),
        "grid_columns": np.array([2]),
    }
    index, embeds = session(model).run(["kept_index", "visual_embeds"], feeds)
    projected = _projected(features[0], weights)
    scores = projected @ weights["language_model.model.embed_tokens.weight"][ids].sum(axis=0) * -3
    assert index.tolist() == sorted(np.argsort(-scores)[:3].tolist())
    np.testing.assert_allclose(embeds, projected[index], rtol=0, atol=1e-5)


def _projected(rows: NDArray[Any], weights: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """LLaVA's projector in float64."""
    import torch

    tensors = {name: torch.from_numpy(value).double() for name, value in weights.items()}
    inner = torch.from_numpy(rows).double() @ tensors["p.linear_1.weight"].T + tensors["p.linear_1.bias"]
    outer = torch.nn.functional.gelu(inner) @ tensors["p.linear_2.weight"].T + tensors["p.linear_2.bias"]
    return outer.numpy()
