"""A decoder input that is new is written in the contract and in the graph, nowhere else.

A bundle is changed by hand: its selector gives a quarter of every embedding as ``visual_embeds`` and the rest as
``deep_embeds``, of which the lower part makes the sum again, and the last row's number travels under a name of its own, too.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from sts_export import Pipeline
from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.generation.graph_runner import GraphRunner
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.decoder.parts import FIRST, LAST
from tests.support.mixed_requests import IMAGES, PROMPTS, Opened, alone, same
from tests.support.pipelines import Spy

DEEP, NUMBER = "deep_embeds", "row_number"


def rename(nodes: Any, old: str, new: str) -> None:
    """A value, wherever nodes read or write it."""
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def with_inputs(contract: GraphContract, *more: TensorSpec) -> GraphContract:
    """Before the caches, where the graph has them, too."""
    place = len(contract.inputs) - len(contract.caches)
    return replace(contract, inputs=(*contract.inputs[:place], *more, *contract.inputs[place:]))


def change_selector(model: onnx.ModelProto, hidden: int) -> None:
    graph = model.graph
    rename(graph.node, "visual_embeds", "all_embeds")
    for name, share in (("visual_embeds", 0.25), (DEEP, 0.75)):
        factor = helper.make_tensor(f"{name}_share", TensorProto.FLOAT, [], [share])
        graph.node.append(helper.make_node("Constant", [], [f"{name}_share"], value=factor))
        graph.node.append(helper.make_node("Mul", ["all_embeds", f"{name}_share"], [name]))
    graph.output.append(helper.make_tensor_value_info(DEEP, TensorProto.FLOAT, ["kept", hidden]))


def change_lower(model: onnx.ModelProto, hidden: int) -> None:
    graph = model.graph
    rename(graph.node, "visual_embeds", "all_embeds")
    graph.node.insert(0, helper.make_node("Add", ["visual_embeds", DEEP], ["all_embeds"]))
    graph.input.append(helper.make_tensor_value_info(DEEP, TensorProto.FLOAT, ["batch", "visual", hidden]))
    graph.node.append(helper.make_node("Identity", ["last_row"], [NUMBER]))
    graph.output.append(helper.make_tensor_value_info(NUMBER, TensorProto.INT64, ["batch"]))


def change_upper(model: onnx.ModelProto) -> None:
    """The row whose logits are wanted is read from the new input."""
    rename(model.graph.node, "last_row", NUMBER)
    model.graph.input.append(helper.make_tensor_value_info(NUMBER, TensorProto.INT64, ["batch"]))


@pytest.fixture
def changed(opened: Opened, tmp_path: Path) -> Pipeline:
    """A pipeline of the changed graphs and contracts."""
    source = opened("llava").bundle
    folder = Path(shutil.copytree(source.folder, tmp_path / "changed"))
    manifest = open_bundle(folder).manifest
    hidden, dtype = manifest.model.decoder.hidden_size, manifest.dtype
    models = {name: onnx.load(folder / f"{name}.onnx", load_external_data=False) for name in ("selector", FIRST, LAST)}
    change_selector(models["selector"], hidden)
    change_lower(models[FIRST], hidden)
    change_upper(models[LAST])
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    graphs = dict(manifest.graphs)
    kept, number = TensorSpec(DEEP, ("kept", hidden), dtype), TensorSpec(NUMBER, ("batch",), "int64")
    selector, lower = graphs["selector"], graphs[FIRST]
    graphs["selector"] = replace(selector, outputs=(*selector.outputs, kept))
    lower = with_inputs(lower, TensorSpec(DEEP, ("batch", "visual", hidden), dtype))
    graphs[FIRST] = replace(lower, outputs=(*lower.outputs, number))
    graphs[LAST] = with_inputs(graphs[LAST], number)
    changed = replace(manifest, graphs=graphs)
    pipeline = Pipeline(source.folder, threads=1)
    pipeline._backend = OnnxRuntimeBackend(Bundle(folder, changed), 1)
    pipeline._graphs = GraphRunner(pipeline._backend, changed)
    return pipeline


def test_new_inputs_reach_the_decoder(opened: Opened, changed: Pipeline) -> None:
    """From the selector and from part to part: one picture, two, none; alone and together."""
    expected = alone(opened("llava"), ignore_eos=True)
    spy = Spy.on(changed)
    same(alone(changed, ignore_eos=True), expected)
    prompts = [call for call in spy.decoder if call.is_prefill]
    assert [DEEP in call.inputs for call in prompts] == [result.visual_tokens.total > 0 for result in expected]
    same(changed.generate(PROMPTS, IMAGES, ignore_eos=True), expected)
    assert spy.batches[-1] == len(PROMPTS)


def test_the_new_input_matters(opened: Opened, changed: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pictures' rows joined to others, answers are others: the test above has something to see."""
    backend: Any = changed._backend
    run = backend.run

    def without(graph: str, inputs: Any, **options: Any) -> Any:
        kept = {name: value for name, value in inputs.items() if name != DEEP or graph != FIRST}
        return run(graph, {**kept, DEEP: kept["visual_embeds"]} if DEEP in inputs else kept, **options)

    monkeypatch.setattr(backend, "run", without)
    expected, found = (alone(vlm, ignore_eos=True) for vlm in (opened("llava"), changed))
    differs = [one.token_ids != other.token_ids for one, other in zip(found, expected, strict=True)]
    assert differs == [result.visual_tokens.total > 0 for result in expected]
