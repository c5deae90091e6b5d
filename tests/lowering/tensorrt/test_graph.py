"""What lowered graphs are made of: an older opset, operators and types that TensorRT 10.0 takes, weights as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from sts_export.bundle.manifest import Bundle
from sts_export.errors import RequestError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.lowering.tensorrt import LoweredGraph, lower
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.bundles import GRAPHS
from tests.support.lowered_graphs import NEW_VERSION, OLD, VARIANTS, all_nodes, bundle_of, read

BUNDLES = [(name, "bfloat16") for name in VARIANTS] + [("llava", "float32"), ("llava", "float16"), ("qwen2_5_vl", "float16")]
FUSED = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"}

# https://github.com/onnx/onnx-tensorrt/blob/release/10.0-GA/docs/operators.md, "Operator Support Matrix": of the operators
# that the lowered graphs use, the supported types (F: FP32, FP16, BF16; I: INT32, INT64; B: BOOL).
SUPPORTED_BY_TYPE = {
    "FIB": "Cast Concat Constant Expand Gather GatherElements GatherND Identity Loop Reshape Shape Slice Split Squeeze Tile "
    "Transpose Unsqueeze Where",
    "FI": "Add ArgMax ArgMin Div Equal Gelu Greater GreaterOrEqual Less LessOrEqual Max Min Mul Neg Range ReduceMax "
    "ReduceMean ReduceSum ScatterElements Sub TopK",
    "F": "Conv CumSum Gemm LayerNormalization MatMul Reciprocal Sigmoid Softmax Sqrt",
    "B": "And Not",
}
SUPPORTED = {name: kinds for kinds, names in SUPPORTED_BY_TYPE.items() for name in names.split()}
KINDS = {
    "F": {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16},
    "I": {TensorProto.INT32, TensorProto.INT64},
    "B": {TensorProto.BOOL},
}
# The same matrix, "Restrictions": inputs that must be known when the graph is parsed.
CONSTANT_INPUTS = {
    **dict.fromkeys(("CumSum", "ReduceMax", "ReduceMean", "ReduceSum", "Squeeze", "Unsqueeze"), 1),
    "Slice": 3,
}
# The input whose type the matrix means, where it is not the first.
DATA_INPUT = {"Where": 1, "Loop": 2}


@pytest.fixture(scope="module", params=BUNDLES, ids="-".join)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    name, dtype = request.param
    return bundle_of(name, dtype, tmp_path_factory)


@pytest.fixture(scope="module")
def lowered(bundle: Bundle) -> dict[tuple[str, bool], LoweredGraph]:
    """(graph, plugins) -> for the old version."""
    return {(name, plugins): lower(read(bundle, name), OLD, plugins=plugins) for name in GRAPHS for plugins in (False, True)}


def models(lowered: dict[tuple[str, bool], LoweredGraph]) -> Iterator[tuple[str, bool, onnx.ModelProto]]:
    for (name, plugins), result in lowered.items():
        yield name, plugins, onnx.load_model_from_string(result.graph)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> element type, of everything that inference reaches, inside loops too."""
    found: dict[str, int] = {}

    def collect(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.output, *graph.value_info]:
            found[value.name] = value.type.tensor_type.elem_type
        found.update({item.name: item.data_type for item in graph.initializer})
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    collect(attribute.g)

    collect(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph)
    return found


def test_valid_at_the_older_opset(bundle: Bundle, lowered: dict[tuple[str, bool], LoweredGraph]) -> None:
    for name, plugins, model in models(lowered):
        file = bundle.folder / f"{name}.lowered.onnx"  # external weights are looked for in the file's folder
        file.write_bytes(model.SerializeToString())
        onnx.checker.check_model(file, full_check=True)
        file.unlink()
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        assert model.ir_version == 9 and not model.functions
        opsets = {item.domain: item.version for item in model.opset_import}
        called = [node.op_type for node in all_nodes(model.graph.node) if node.domain]
        has_function = name in ("selector", "llm_lower")
        assert called == (
            [{"selector": "RepulsionSelect", "llm_lower": "LastTokenTopK"}[name]] if plugins and has_function else []
        )
        assert opsets == ({"": 20, "sts": 1} if called else {"": 20})
        values = [output for node in all_nodes(model.graph.node) for output in node.output]
        values += [item.name for item in [*model.graph.input, *model.graph.initializer]]
        assert len(values) == len(set(values))
        names = [node.name for node in all_nodes(model.graph.node)]
        assert all(names) and len(names) == len(set(names))
        assert not any(node.metadata_props for node in all_nodes(model.graph.node))  # a field of IR version 10


def test_the_interface_stays(bundle: Bundle, lowered: dict[tuple[str, bool], LoweredGraph]) -> None:
    for name, _, model in models(lowered):
        before = onnx.load_model_from_string(read(bundle, name)).graph
        assert list(model.graph.input) == list(before.input)
        assert list(model.graph.output) == list(before.output)
        assert model.graph.name == name


def test_operators_and_types_are_supported(lowered: dict[tuple[str, bool], LoweredGraph]) -> None:
    for name, _, model in models(lowered):
        types = types_of(model)
        constants = {output for node in all_nodes(model.graph.node) if node.op_type == "Constant" for output in node.output}
        constants |= {item.name for item in model.graph.initializer}
        for node in all_nodes(model.graph.node):
            if node.domain:
                continue
            assert node.op_type in SUPPORTED, (name, node.op_type)
            allowed = set().union(*(KINDS[kind] for kind in SUPPORTED[node.op_type]))
            index = DATA_INPUT.get(node.op_type, 0)
            data = node.output[0] if node.op_type == "Constant" else node.input[index]
            assert types[data] in allowed, (name, node.op_type, node.name, types[data])
            place = CONSTANT_INPUTS.get(node.op_type)
            if place is not None and len(node.input) > place:
                assert node.input[place] in constants, (name, node.name)
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "TopK":
                assert attributes.get("sorted", 1) == 1
            if node.op_type == "ScatterElements":
                assert attributes.get("reduction", b"none") == b"none"  # others are a plugin of TensorRT's own
            if node.op_type == "Loop":
                assert node.input[0] and not node.input[1]  # a trip count alone decides the length of a scan


def test_the_check_above_finds_what_it_is_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The bundle's own graphs fail it, for their operators and for a running sum of integers."""
    model = onnx.load_model_from_string(read(bundle_of("llava", "float16", tmp_path_factory), "llm_lower"))
    kinds = {node.op_type for node in model.graph.node if not node.domain}
    assert kinds - set(SUPPORTED) == FUSED
    (running,) = [node for node in model.graph.node if node.op_type == "CumSum"]
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert types[running.input[0]] == TensorProto.INT64 and "I" not in SUPPORTED["CumSum"]


def test_shared_parts_are_there_once(bundle: Bundle, lowered: dict[tuple[str, bool], LoweredGraph]) -> None:
    """A layer more costs its own operators only: no masks, tables, indices or constants of its own."""
    for name in ("llm_lower", "llm_upper"):
        model = onnx.load_model_from_string(lowered[name, True].graph)
        nodes = list(model.graph.node)
        decoder = bundle.manifest.model.decoder
        grouped = decoder.num_kv_heads < decoder.num_heads
        tables = {"rotary_cos", "rotary_sin"}
        assert sum(node.op_type == "Tile" for node in nodes) == grouped
        lookups = sum(node.op_type == "Gather" and node.input[0] in tables for node in nodes)
        assert lookups == (0 if decoder.mrope_section else 2)
        assert sum(node.op_type == "Range" for node in nodes) == {"llm_lower": 3, "llm_upper": 2}[name]
        updated = {after for _, after in bundle.manifest.graphs[name].caches}
        producers = {output: node for node in nodes for output in node.output}
        selections = [producers[output] for output in updated]
        assert {node.op_type for node in selections} == {"Where"} and len({node.input[0] for node in selections}) == 1
        gathered = [producers[node.input[1]] for node in selections]
        assert {node.op_type for node in gathered} == {"Gather"}
        (index,) = {node.input[1] for node in gathered}
        assert types_of(model)[index] == TensorProto.INT32  # TensorRT would cast any other anew for every cache
        before = {node.name for node in onnx.load_model_from_string(read(bundle, name)).graph.node}
        made = [node.attribute[0] for node in nodes if node.op_type == "Constant" and node.name not in before]
        contents = [item.SerializeToString(deterministic=True) for item in made]
        assert len(contents) == len(set(contents)) > 0


def test_softmax_is_in_float32_and_the_scale_comes_first(lowered: dict[tuple[str, bool], LoweredGraph]) -> None:
    """Every attention: scaled query times keys, softmax of float32."""
    for name, _, model in models(lowered):
        types = types_of(model)
        producers = {output: node for node in model.graph.node for output in node.output}
        for node in model.graph.node:
            if node.op_type != "Softmax":
                continue
            assert types[node.input[0]] == TensorProto.FLOAT
            if "Attention" not in node.name:
                continue  # of CLS attention or of stage 2, which are in float32 from the start
            above = node.input[0]
            seen: list[str] = []
            while not seen or seen[-1] != "Mul":
                producer = producers[above]
                seen.append(producer.op_type)
                above = producer.input[1 if producer.op_type == "Where" else 0]
            assert types[above] == TensorProto.FLOAT  # in bfloat16 the scale itself would be rounded
            order = [kind for kind in reversed(seen) if kind not in ("Cast", "Reshape")]
            assert order in (["Mul", "MatMul"], ["Mul", "MatMul", "Where"]), (name, order)


@pytest.mark.parametrize("version", [OLD, NEW_VERSION, (11, 0)])
def test_plugin_nodes(bundle: Bundle, version: tuple[int, int]) -> None:
    wanted = {"selector": ("RepulsionSelect", "epsilon"), "llm_lower": ("LastTokenTopK", "scale")}
    for name in GRAPHS:
        before = onnx.load_model_from_string(read(bundle, name))
        model = onnx.load_model_from_string(lower(read(bundle, name), version, plugins=True).graph)
        assert not model.functions
        calls = [node for node in model.graph.node if node.domain]
        assert [(node.op_type, node.domain) for node in calls] == ([(wanted[name][0], "sts")] if name in wanted else [])
        for node in calls:
            (call,) = [other for other in before.graph.node if other.domain]
            number = wanted[name][1]
            attributes = {item.name: item for item in node.attribute}
            assert set(attributes) == {number, "plugin_namespace", "plugin_version"}
            assert attributes[number] == call.attribute[0] and attributes[number].type == onnx.AttributeProto.FLOAT
            assert attributes["plugin_namespace"].s == b"sts" and attributes["plugin_version"].s == b"1"
            assert attributes["plugin_version"].type == onnx.AttributeProto.STRING
            assert list(node.output) == list(call.output) and list(node.input) == list(call.input)
            known = {item.name: item.type.tensor_type for item in [*model.graph.value_info, *model.graph.output]}
            for output in node.output:
                assert known[output].elem_type == TensorProto.INT64 and known[output].HasField("shape"), output


def test_newer_versions_take_the_graph_as_it_is(bundle: Bundle) -> None:
    for name in GRAPHS:
        graph = read(bundle, name)
        for version in (NEW_VERSION, (10, 16), (11, 0)):
            assert lower(graph, version, plugins=False) == LoweredGraph(graph, aliased_caches=True)
            with_plugins = lower(graph, version, plugins=True)
            assert with_plugins.aliased_caches
            after, before = onnx.load_model_from_string(with_plugins.graph), onnx.load_model_from_string(graph)
            assert after.opset_import == before.opset_import and after.ir_version == before.ir_version
            assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


@pytest.mark.parametrize("version", [(10, 0), OLD, (10, 14)])
def test_older_versions_get_basic_operators(bundle: Bundle, version: tuple[int, int]) -> None:
    for name in GRAPHS:
        result = lower(read(bundle, name), version, plugins=False)
        assert not result.aliased_caches
        assert result.graph == lower(read(bundle, name), OLD, plugins=False).graph  # the same bytes each time


@pytest.mark.parametrize("version", [OLD, (11, 0)])
def test_weights_are_never_read(version: tuple[int, int], tmp_path: Path) -> None:
    """They are gone before the lowering; every reference comes out as it went in."""
    checkpoint = write_random_llava(tmp_path / "checkpoint", RandomLlava(vision_width=64, layers=3))
    request = ExportRequest(str(checkpoint), output=tmp_path / "bundle", keep=(12, 5), dtype="float16")
    bundle = export(request)
    graphs = {name: read(bundle, name) for name in GRAPHS}
    for file in (*bundle.folder.glob("*.safetensors"), *checkpoint.glob("*.safetensors")):
        file.unlink()
    for graph in graphs.values():
        before = onnx.load_model_from_string(graph).graph.initializer
        for plugins in (False, True):
            result = lower(graph, version, plugins=plugins)
            after = onnx.load_model_from_string(result.graph).graph.initializer
            assert {item.name: _reference(item) for item in after} == {item.name: _reference(item) for item in before}
            assert any(item.data_location == TensorProto.EXTERNAL for item in after)
            assert len(result.graph) < 3 * len(graph)


def _reference(tensor: onnx.TensorProto) -> tuple[Any, ...]:
    place = {item.key: item.value for item in tensor.external_data}
    return tensor.data_type, tuple(tensor.dims), tensor.data_location, place, tensor.raw_data


@pytest.mark.parametrize("version", [OLD, (11, 0)])
def test_quantized_graphs_are_refused(version: tuple[int, int], tmp_path: Path) -> None:
    checkpoint = write_random_llava(tmp_path / "checkpoint", RandomLlava(layers=3))
    bundle = export(ExportRequest(str(checkpoint), output=tmp_path / "bundle", keep=(12, 5), quantize="int8"))
    with pytest.raises(RequestError, match=r"llm_lower has operators of com\.microsoft.*without --quantize") as error:
        lower(read(bundle, "llm_lower"), version, plugins=False)
    assert "\n" not in str(error.value)
