"""A stage before the LLM as a model of its own, without the selector around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.model import IR_VERSION, OPSET, STS_DOMAIN
from sts_export.graphs.needs import CLS_FEATURES, GRID, MEAN_KEYS, OF_SELECTOR, PROJECTED, TEXT
from sts_export.graphs.stages import Stage1Inputs
from sts_export.pruning.stage import Stage1
from tests.graphs.onnx_models import bind, session

_SHAPES: dict[str, list[int | str]] = {
    PROJECTED: ["crops", "rows", "hidden"],
    TEXT: ["text", "hidden"],
    GRID: [1],
    MEAN_KEYS: ["crops", "rows", "head_dim"],
}


class Chosen(NamedTuple):
    """What a stage chose of each crop, within its quota.

    rows: the chosen rows in order; features: [crops, rows, width], joined: [crops, rows] and last: the rows among ``rows`` that
    stand behind all others; the stage's own form of them is checked.
    """

    rows: list[list[int]]
    features: NDArray[Any] | None
    joined: NDArray[np.int64] | None
    last: list[list[int]] | None


def stage_model(stage: Stage1, width: int, *, dtype: str = "FLOAT", max_crops: int = 5, max_rows: int = 576) -> ir.Model:
    """Inputs features, candidates, quota and what the stage needs by its names; outputs chosen and what else it gives."""

    def value(name: str, kind: str, shape: list[int | str]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType[kind]), shape=ir.Shape(shape))

    features = value("features", dtype, ["crops", "rows", width])
    candidates, quota = value("candidates", "BOOL", ["crops", "rows"]), value("quota", "BOOL", ["crops", "steps"])
    shapes: dict[str, list[int | str]] = {**_SHAPES, CLS_FEATURES: ["crops", width]}
    of_model = {TEXT: dtype, PROJECTED: dtype, GRID: "INT64", CLS_FEATURES: dtype}
    needed = {
        need: value(need, of_model.get(need, "FLOAT"), shapes.get(need, ["crops", "rows"])) for need in sorted(stage.needs)
    }
    inputs = [features, candidates, quota, *needed.values()]
    graph = ir.Graph(inputs, [], nodes=[], name="stage", opset_imports={"": OPSET, STS_DOMAIN: 1})
    builder = GraphBuilder(graph)
    tower = {name: item for name, item in needed.items() if name not in OF_SELECTOR}
    choice = stage.build(
        builder.op,
        Stage1Inputs(
            features,
            candidates,
            quota,
            max_crops,
            max_rows,
            tower,
            projected=needed.get(PROJECTED),
            text=needed.get(TEXT),
            columns=needed.get(GRID),
        ),
    )
    outputs = {"chosen": "INT64", "features": dtype, "joined": "INT64", "last": "BOOL"}
    for name, kind in outputs.items():
        if (result := getattr(choice, name)) is not None:
            result.type = ir.TensorType(ir.DataType[kind])
            builder.add_output(result, f"out_{name}")
    model = ir.Model(graph, ir_version=IR_VERSION)
    model.functions.update(builder.functions)
    if not builder.functions:
        del graph.opset_imports[STS_DOMAIN]
    return model


def stage_session(
    stage: Stage1, width: int, weights: Mapping[str, NDArray[Any]] | None = None, **sizes: Any
) -> ort.InferenceSession:
    model = stage_model(stage, width, **sizes)
    bind(model, weights or {})
    return session(model)


def quota_of(keep: list[int], steps: int | None = None) -> NDArray[np.bool_]:
    """[crops, steps]; true for s < K of each crop."""
    steps = max(*keep, 1) if steps is None else steps
    return np.arange(steps) < np.array(keep)[:, None]


def choose(
    stage: ort.InferenceSession,
    features: NDArray[Any],
    keep: list[int],
    candidates: NDArray[np.bool_] | None = None,
    needed: Mapping[str, NDArray[Any]] | None = None,
) -> Chosen:
    """What the stage chooses of crops that keep so many."""
    crops, rows = features.shape[:2]
    candidates = np.ones((crops, rows), bool) if candidates is None else candidates
    names = [output.name for output in stage.get_outputs()]
    results = stage.run(None, {"features": features, "candidates": candidates, "quota": quota_of(keep), **(needed or {})})
    found = dict(zip(names, results, strict=True))
    chosen = found["out_chosen"]
    assert chosen.dtype == np.int64 and chosen.shape == (crops, max(*keep, 1))
    assert ((chosen >= 0) & (chosen <= rows)).all()
    kept = [each[:count].tolist() for each, count in zip(chosen, keep, strict=True)]
    last = found.get("out_last")
    behind = None
    if last is not None:
        behind = [sorted(np.array(rows)[late[: len(rows)]].tolist()) for rows, late in zip(kept, last, strict=True)]
    return Chosen(kept, found.get("out_features"), found.get("out_joined"), behind)


class Expected(NamedTuple):
    """What one crop should give; ``margin``: how clear the least clear choice between floats was."""

    rows: list[int]
    features: NDArray[np.float64] | None = None
    joined: list[int] | None = None
    last: Sequence[int] = ()
    margin: float = float("inf")


def same(found: Chosen, expected: Sequence[Expected], features: NDArray[Any]) -> None:
    """Chosen rows as sets; features to 1e-5 of the largest; joined rows; and those behind all others."""
    assert [sorted(rows) for rows in found.rows] == [sorted(each.rows) for each in expected]
    merges = expected[0].features is not None
    assert (found.features is not None) == merges and (found.joined is not None) == merges
    if found.features is not None and found.joined is not None:
        assert found.features.dtype == features.dtype
        np.testing.assert_array_equal(found.joined, [each.joined for each in expected])
        wanted = np.array([each.features for each in expected])
        # A result in float16 is rounded once.
        bound = (1e-5 if features.dtype == np.float32 else 1e-3) * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(found.features.astype(np.float64), wanted, rtol=0, atol=bound)
    if found.last is not None:
        assert found.last == [sorted(each.last) for each in expected]
