"""Graphs of their own for what a method adds, with random weights, on ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sts_export.backends.onnxruntime.sessions import SessionFactory
from sts_export.families.spec import ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.decoder.layer import QueryKey, layer_context
from sts_export.graphs.layers import RMSNorm, concat_dims, dims
from sts_export.graphs.model import build_model, parameters
from sts_export.graphs.needs import FINAL_HIDDEN, NEXT_QUERY_KEY
from sts_export.graphs.selector import TextTable, selector
from sts_export.graphs.stages import Stage1Builder, Stage1Choice, Stage1Inputs, Stage2Inputs
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from sts_export.pruning.stage import Stage1, Stage2

Feeds = Mapping[str, NDArray[Any]]
DTYPE: Dtype = "float32"


@dataclass(frozen=True)
class Graph:
    """A session and its contract."""

    session: Any
    inputs: tuple[TensorSpec, ...]

    def random_feeds(self, sizes: Mapping[str, int], given: Feeds) -> dict[str, NDArray[Any]]:
        """Normally distributed numbers for float inputs; the others are ``given``.

        Args:
            sizes: of symbolic dimensions.
            given: takes precedence, where the graph has an input of that name.
        """
        rng, feeds = np.random.default_rng(0), {}
        for spec in self.inputs:
            if spec.name in given:
                feeds[spec.name] = given[spec.name]
            else:
                shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
                feeds[spec.name] = rng.standard_normal(shape, np.float32)
        return feeds

    def runner(self, feeds: Feeds) -> Callable[[], Any]:
        return lambda: self.session.run(None, dict(feeds))


def opened(model: ir.Model, contract: tuple[TensorSpec, ...], heads: int, threads: int) -> Graph:
    """As the pipeline opens it, with small random weights."""
    rng = np.random.default_rng(1)
    for parameter in parameters(model):
        shape = [int(size) for size in parameter.shape or ()]
        data = 0.02 * rng.standard_normal(shape, np.float32)
        parameter.const_value = ir.tensor(data, name=parameter.name)
    lowered = for_onnxruntime(ir.to_proto(model).SerializeToString(), heads, "cpu")
    return Graph(SessionFactory("cpu", threads).open(lowered), contract)


def encoder_graph(spec: ModelSpec, needs: frozenset[str], threads: int) -> Graph:
    """The tower with the outputs that a stage needs."""
    contract = spec.tower.contract(DTYPE, needs)
    return opened(spec.tower.graph(DTYPE, "tower", needs), contract.inputs, spec.vision.num_heads, threads)


def selector_graph(spec: ModelSpec, stage: Stage1, threads: int, *, build: Stage1Builder | None = None) -> Graph:
    """The selector with this stage; or with ``build`` in its place, which is given what the stage needs."""
    gives = spec.tower.gives
    features = spec.tower.contract(DTYPE, stage.needs & gives).outputs
    model = selector(
        features,
        spec.projector,
        DTYPE,
        hidden_size=spec.decoder.hidden_size,
        width=spec.tower.width,
        prefix="projector",
        stage1=build or stage.build,
        max_crops=spec.tower.max_crops,
        max_rows=spec.tower.rows_per_crop,
        needs=stage.needs,
        merges=stage.merges and build is None,
        text=TextTable("decoder", spec.decoder.vocab_size),
    )
    inputs = tuple(_spec_of(value) for value in model.graph.inputs)
    return opened(model, inputs, spec.decoder.num_heads, threads)


def first_rows(op: Any, inputs: Stage1Inputs) -> Stage1Choice:
    """The first rows of each crop, at no cost."""
    crops, steps = dims(op, inputs.quota, 0, 1), dims(op, inputs.quota, 1, 2)
    step = op.Range(op.Constant(value_int=0), op.Squeeze(steps), op.Constant(value_int=1))
    return Stage1Choice(op.Expand(step, op.Concat(crops, steps, axis=0)))


def stage2_graph(spec: ModelSpec, stage: Stage2, rows: int, threads: int) -> Graph:
    """A stage inside the LLM, with the projections and norms that the decoder's part has for its sake alone.

    Args:
        rows: of the prompt.
    """
    decoder = spec.decoder
    heads, kv_heads = (("batch", count, "rows", decoder.head_dim) for count in (decoder.num_heads, decoder.num_kv_heads))
    positions = ("batch", 3, "rows") if decoder.mrope_section else ("batch", "rows")
    contract = GraphContract(
        "stage2",
        (
            TensorSpec("hidden", ("batch", "rows", decoder.hidden_size), DTYPE),
            TensorSpec("query", heads, DTYPE),
            TensorSpec("key", kv_heads, DTYPE),
            TensorSpec("attention_mask", ("batch", "rows"), "int64"),
            TensorSpec("visual_mask", ("batch", "rows"), "bool"),
            TensorSpec("text_rows", ("batch", "rows"), "bool"),
            TensorSpec("visual_embeds", ("batch", "visual", 1), DTYPE),
            TensorSpec("stage2_slots", ("visual_keep",), "int64"),
            TensorSpec("seed", ("batch",), "int64"),
            TensorSpec("position_ids", positions, "int64"),
            TensorSpec("write_index", ("batch",), "int64"),
        ),
        (TensorSpec("kept_rows", ("batch", "survivors"), "int64"), TensorSpec("last_row", ("batch",), "int64")),
    )
    norm = RMSNorm(decoder.hidden_size, decoder.rms_norm_eps, DTYPE)
    query_key = QueryKey(decoder, DTYPE)
    norm._set_name("norm")
    query_key._set_name("next_layer")

    def forward(op: Any, *values: ir.Value) -> list[ir.Value]:
        given = {spec.name: value for spec, value in zip(contract.inputs, values, strict=True)}
        hidden, query, key = given["hidden"], given["query"], given["key"]
        if NEXT_QUERY_KEY in stage.needs:
            context = layer_context(
                op,
                decoder,
                DTYPE,
                rows_of=hidden,
                position_ids=given["position_ids"],
                write_index=given["write_index"],
                capacity=rows,
                positions=rows,
            )
            flat = op.Reshape(hidden, concat_dims(op, -1, decoder.hidden_size))
            query, key = query_key(op, flat, context)
        inputs = Stage2Inputs(
            query,
            key,
            given["attention_mask"],
            given["visual_mask"],
            given["visual_embeds"],
            given["stage2_slots"],
            float(decoder.head_dim**-0.5),
            text_rows=given["text_rows"],
            final_hidden=norm(op, hidden) if FINAL_HIDDEN in stage.needs else None,
            seed=given["seed"],
        )
        return list(stage.build(op, inputs))

    return opened(build_model(contract, forward), contract.inputs, decoder.num_heads, threads)


def _spec_of(value: ir.Value) -> TensorSpec:
    """A graph's input as a contract has it."""
    kinds = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64", ir.DataType.BOOL: "bool"}
    assert value.name is not None and value.shape is not None and value.dtype is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, shape, kinds[value.dtype])
