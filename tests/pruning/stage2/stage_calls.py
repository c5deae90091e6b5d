"""One call of a stage inside the LLM on ONNX Runtime, and random prompts for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from sts_export.graphs.model import OPSET, STS_DOMAIN
from sts_export.graphs.stages import Stage2Inputs
from sts_export.pruning.stage import Stage2
from tests.graphs.onnx_models import TYPES, session

Array = NDArray[Any]
TEXT, VISUAL, NEWLINE, PADDING = range(4)
SCALE = 0.35


@dataclass(frozen=True)
class Prompts:
    """kinds: [batch, rows], of TEXT, VISUAL, NEWLINE and PADDING; the rest as in Stage2Inputs."""

    kinds: Array
    query: Array
    key: Array
    hidden: Array
    seeds: Array

    @property
    def visual_count(self) -> int:
        return int((self.kinds[0] == VISUAL).sum())


def stage_model(stage: Stage2, dtype: str) -> ir.Model:
    """The nodes of a stage and nothing else."""
    inputs: list[tuple[str, str, list[int | str]]] = [
        ("query", dtype, ["batch", "heads", "rows", "head_dim"]),
        ("key", dtype, ["batch", "kv_heads", "rows", "head_dim"]),
        ("attention_mask", "INT64", ["batch", "rows"]),
        ("visual_mask", "BOOL", ["batch", "rows"]),
        ("visual_embeds", dtype, ["batch", "visual", "hidden"]),
        ("stage2_slots", "INT64", ["visual_keep"]),
        ("text_rows", "BOOL", ["batch", "rows"]),
        ("final_hidden", dtype, ["batch", "rows", "hidden"]),
        ("seed", "INT64", ["batch"]),
    ]
    values = {
        name: ir.Value(name=name, type=ir.TensorType(ir.DataType[kind]), shape=ir.Shape(shape)) for name, kind, shape in inputs
    }
    graph = ir.Graph([*values.values()], [], nodes=[], name="stage", opset_imports={"": OPSET, STS_DOMAIN: 1})
    builder = GraphBuilder(graph)
    results = stage.build(builder.op, Stage2Inputs(**values, scale=SCALE))
    for name, result in zip(("kept_rows", "last_row"), results, strict=True):
        result.type = ir.TensorType(ir.DataType.INT64)
        builder.add_output(result, name)
    model = ir.Model(graph, ir_version=11)
    model.functions.update(builder.functions)
    return model


@cache
def stage_session(stage: Stage2, dtype: str) -> ort.InferenceSession:
    return session(stage_model(stage, dtype))


def stage_feeds(prompts: Prompts, keep: int) -> dict[str, Array]:
    kinds, dtype = prompts.kinds, prompts.query.dtype
    return {
        "query": prompts.query,
        "key": prompts.key,
        "attention_mask": (kinds != PADDING).astype(np.int64),
        "visual_mask": kinds == VISUAL,
        "visual_embeds": np.zeros((len(kinds), max(1, prompts.visual_count), prompts.hidden.shape[2]), dtype),
        "stage2_slots": np.full(keep, -7, np.int64),
        "text_rows": kinds == TEXT,
        "final_hidden": prompts.hidden,
        "seed": prompts.seeds,
    }


def survive(stage: Stage2, prompts: Prompts, keep: int) -> tuple[list[list[int]], list[int]]:
    """kept_rows and last_row of each request."""
    feeds = stage_feeds(prompts, keep)
    kept, last = stage_session(stage, TYPES[prompts.query.dtype.name]).run(None, feeds)
    assert kept.dtype == last.dtype == np.int64
    return kept.tolist(), last.tolist()


def with_text(kinds: Array, visual: list[int]) -> tuple[list[int], int]:
    """The surviving rows of one request where these visual ones do, and which of them is the last real one."""
    rows = sorted([*np.flatnonzero(kinds != VISUAL).tolist(), *visual])
    return rows, sum(bool(kinds[row] != PADDING) for row in rows) - 1


def behind_pictures(kinds: Array) -> list[int]:
    """Text rows behind the last row of a picture."""
    last = max(np.flatnonzero((kinds == VISUAL) | (kinds == NEWLINE)).tolist(), default=-1)
    return [row for row in np.flatnonzero(kinds == TEXT).tolist() if row > last]


def one_kinds(rng: np.random.Generator, visual: int, newlines: int, after: int, pictures: int) -> list[int]:
    """Text, one or more pictures with text between them, text."""
    picture = rng.permutation([VISUAL] * visual + [NEWLINE] * newlines).tolist()
    bounds = [0, *sorted(rng.integers(0, len(picture) + 1, pictures - 1).tolist()), len(picture)]
    row = [TEXT] * int(rng.integers(0, 6))
    for start, end in pairwise(bounds):
        row += picture[start:end] + [TEXT] * int(rng.integers(0, 3))
    while row and row[-1] == TEXT:
        row.pop()
    return row + [TEXT] * after


def padded(rows: list[list[int]], more: int = 0) -> Array:
    length = max(map(len, rows)) + more
    return np.array([row + [PADDING] * (length - len(row)) for row in rows])


def random_prompts(
    rng: np.random.Generator, kinds: Array, *, kv_heads: int = 2, group: int = 2, dtype: Any = np.float32
) -> Prompts:
    """Random tensors of 6 dimensions a head and 12 of hidden states."""
    batch, rows = kinds.shape
    return Prompts(
        kinds,
        rng.standard_normal((batch, kv_heads * group, rows, 6)).astype(dtype),
        rng.standard_normal((batch, kv_heads, rows, 6)).astype(dtype),
        rng.standard_normal((batch, rows, 12)).astype(dtype),
        rng.integers(0, 2**40, size=(batch,)),
    )
