"""A stage before the LLM as a graph of its own, without the selector around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.functions import tensor
from sts_export.graphs.model import IR_VERSION, OPSET, STS_DOMAIN
from sts_export.graphs.needs import CLS_FEATURES, GRID, MEAN_KEYS, OF_SELECTOR, PROJECTED, SEED, TEXT
from sts_export.graphs.stages import Stage1Inputs
from sts_export.pruning.stage import Stage1
from tests.graphs.onnx_models import bind, session

Array = NDArray[Any]


def stage_model(
    stage: Stage1, kind: ir.DataType = ir.DataType.FLOAT, *, width: int | str = "width", max_crops: int = 5, max_rows: int = 576
) -> ir.Model:
    """Inputs: features, candidates, quota and what the stage needs, by their names.

    Outputs: out_chosen and, as far as the stage gives them, out_features, out_joined and out_last.

    Args:
        kind: of the features and of what has their dtype.
        width: of the features.
    """
    floats, whole = ir.DataType.FLOAT, ir.DataType.INT64
    inputs = {
        "features": tensor("features", kind, "crops", "rows", width),
        "candidates": tensor("candidates", ir.DataType.BOOL, "crops", "rows"),
        "quota": tensor("quota", ir.DataType.BOOL, "crops", "steps"),
    }
    special = {
        CLS_FEATURES: tensor(CLS_FEATURES, kind, "crops", width),
        MEAN_KEYS: tensor(MEAN_KEYS, floats, "crops", "rows", "head_dim"),
        PROJECTED: tensor(PROJECTED, kind, "crops", "rows", "hidden"),
        TEXT: tensor(TEXT, kind, "text", "hidden"),
        SEED: tensor(SEED, whole, 1),
        GRID: tensor(GRID, whole, 1),
    }
    needed = {name: special.get(name) or tensor(name, floats, "crops", "rows") for name in sorted(stage.needs)}
    graph = ir.Graph(
        [*inputs.values(), *needed.values()], [], nodes=[], name=stage.name, opset_imports={"": OPSET, STS_DOMAIN: 1}
    )
    builder = GraphBuilder(graph)
    given = {"columns" if name == GRID else name: needed[name] for name in stage.needs & OF_SELECTOR}
    tower = {name: value for name, value in needed.items() if name not in OF_SELECTOR}
    choice = stage.build(builder.op, Stage1Inputs(**inputs, max_crops=max_crops, max_rows=max_rows, tower=tower, **given))
    choice.chosen.shape = ir.Shape(["crops", "steps"])
    for name, result_kind in {"chosen": whole, "features": kind, "joined": whole, "last": ir.DataType.BOOL}.items():
        if (result := getattr(choice, name)) is not None:
            result.type = ir.TensorType(result_kind)
            builder.add_output(result, f"out_{name}")
    model = ir.Model(graph, ir_version=IR_VERSION)
    model.functions.update(builder.functions)
    if not builder.functions:
        del graph.opset_imports[STS_DOMAIN]
    return model


def stage_session(
    stage: Stage1, kind: ir.DataType = ir.DataType.FLOAT, weights: Mapping[str, Array] | None = None, **sizes: int
) -> ort.InferenceSession:
    """Args: weights: of a stage that has its own."""
    model = stage_model(stage, kind, **sizes)
    bind(model, weights or {})
    return session(model)


def quota_of(shares: Sequence[int]) -> NDArray[np.bool_]:
    """[crops, steps] of the K of each crop; one step at least."""
    return np.arange(max(*shares, 1)) < np.array(shares)[:, None]


def chosen_rows(stage_run: ort.InferenceSession, shares: Sequence[int], feeds: Mapping[str, Array]) -> list[list[int]]:
    """The choices of each crop that count, in their order; features that the stage does not read may be left out."""
    crops, rows = feeds["candidates"].shape
    given = {"features": np.zeros((crops, rows, 1), np.float32), **feeds, "quota": quota_of(shares)}
    names = {each.name for each in stage_run.get_inputs()}
    chosen = stage_run.run(["out_chosen"], {name: value for name, value in given.items() if name in names})[0]
    assert chosen.dtype == np.int64 and chosen.shape == given["quota"].shape
    assert ((chosen >= 0) & (chosen < rows)).all()
    return [row[:share].tolist() for row, share in zip(chosen, shares, strict=True)]


@dataclass(frozen=True)
class Crops:
    """Crops of one picture: which rows the model reads, [crops, rows], and the K of each."""

    candidates: NDArray[np.bool_]
    shares: list[int]


def draw_crops(data: st.DataObject, *, max_rows: int = 40) -> Crops:
    """One token, K = N, crops without a candidate or without a share: all of them come up."""
    crops, rows = data.draw(st.integers(1, 4), label="crops"), data.draw(st.integers(1, max_rows), label="rows")
    counts = data.draw(st.lists(st.integers(0, rows), min_size=crops, max_size=crops).filter(any), label="candidates")
    all_rows = data.draw(st.booleans(), label="all rows are candidates")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="places and shares"))
    counts = [rows] * crops if all_rows else counts
    candidates = np.array([rng.permutation(np.arange(rows) < count) for count in counts])
    all_of_some = data.draw(st.integers(0, 3), label="K = N") == 0
    shares = [count if all_of_some and rng.random() < 0.5 else int(rng.integers(0, count + 1)) for count in counts]
    return Crops(candidates, shares if any(shares) else counts)


def largest(scores: Array, candidates: NDArray[np.bool_], keep: int) -> list[int]:
    """The K candidates of largest score, largest first; ties go to the lowest row: [rows], [rows] bool."""
    return sorted(np.flatnonzero(candidates).tolist(), key=lambda row: (-scores[row], row))[:keep]
