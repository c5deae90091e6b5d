"""The four graphs as ONNX models: valid, exactly their contract, standard operators, the checkpoint's parameters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors import safe_open

from sts_export.checkpoints.checkpoint import image_processor_settings
from sts_export.families import family_of
from sts_export.families.build import build
from sts_export.families.capacities import Capacities
from sts_export.families.family import Family
from sts_export.families.spec import Graphs, ModelSpec
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.model import parameters
from sts_export.graphs.rotary import inverse_frequencies, rotary_tables
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.json_records import decode, encode
from sts_export.pruning.choosing import config_for_counts
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.stage1.repulsion import Repulsion
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

AnySpec = RandomLlava | RandomLlavaNext | RandomQwen25VL

DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
ONNX_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
}
# name -> checkpoint, prune layer, (K, K'), choices
VARIANTS: dict[str, tuple[AnySpec, int, tuple[int, int], dict[str, Any]]] = {
    "grouped": (RandomLlava(), 2, (10, 4), {}),
    "plain": (RandomLlava(seed=1, kv_heads=4), 1, (10, 4), {"anchor": "first", "positions": "keep"}),
    "one_kv_head": (RandomLlava(kv_heads=1, layers=5), 4, (10, 4), {"anchor": "saliency", "score_layer": "next"}),
    "tied": (RandomLlava(tied_embeddings=True), 3, (10, 1), {"score_layer": "next", "positions": "keep"}),
    "biases": (RandomLlava(attention_bias=True, mlp_bias=True), 2, (1, 1), {"anchor": "saliency"}),
    "tied_biases": (
        RandomLlava(tied_embeddings=True, attention_bias=True, mlp_bias=True, layers=2),
        1,
        (35, 35),
        {"score_layer": "next"},
    ),
    "unpruned": (RandomLlava(image_size=28, vision_feature_layer=-1), 2, (4, 4), {"anchor": "saliency"}),
    "next_vicuna": (RandomLlavaNext(kv_heads=4), 2, (20, 6), {"anchor": "saliency"}),
    "next_mistral": (RandomLlavaNext(seed=1, decoder="mistral", layers=3), 1, (20, 6), {"score_layer": "next"}),
    "qwen": (RandomQwen25VL(), 2, (20, 6), {"positions": "keep"}),
    "qwen_tied": (
        RandomQwen25VL(tied_embeddings=True, fullatt_block_indexes=(2,), layers=3),
        1,
        (10, 10),
        {"score_layer": "next", "anchor": "first"},
    ),
    "qwen_unpruned": (RandomQwen25VL(max_pixels=30 * 28 * 28), 2, (77, 77), {"positions": "keep"}),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint, its graphs in one dtype, and their serialized form (weights are zeros)."""

    checkpoint: Path
    family: Family
    spec: ModelSpec
    pruning: PruningConfig
    capacities: Capacities
    dtype: Dtype
    graphs: Graphs
    protos: dict[str, onnx.ModelProto]

    def fresh(self) -> Graphs:
        """Built again, without data."""
        return build(self.spec, self.family.names, self.pruning, self.capacities, self.dtype)


def write_checkpoint(folder: Path, spec: AnySpec) -> Path:
    """With the names on the hub."""
    if isinstance(spec, RandomQwen25VL):
        return write_random_qwen2_5_vl(folder, dataclasses.replace(spec, layout="4.x"))
    if isinstance(spec, RandomLlavaNext):
        return write_random_llava_next(folder, dataclasses.replace(spec, layout="4.x"))
    return write_random_llava(folder, dataclasses.replace(spec, layout="4.x"))


def read_spec(folder: Path) -> tuple[Family, ModelSpec]:
    config = json.loads((folder / "config.json").read_text())
    family = family_of(config)
    return family, family.parse(config, image_processor_settings(folder)[0])


@pytest.fixture(scope="module", params=list(VARIANTS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_checkpoint(tmp_path_factory.mktemp(request.param), VARIANTS[request.param][0])


@pytest.fixture(scope="module", params=DTYPES)
def case(request: pytest.FixtureRequest, checkpoint: tuple[str, Path]) -> Case:
    name, folder = checkpoint
    _, layer, (keep1, keep2), choices = VARIANTS[name]
    family, spec = read_spec(folder)
    pruning = config_for_counts(spec.max_image_tokens, spec.decoder.num_layers, layer, keep1, keep2, **choices)
    capacities = Capacities.plan(spec, pruning, prompt_tokens=40, new_tokens=10, visual_tokens=0)
    graphs = build(spec, family.names, pruning, capacities, request.param)
    protos = {}
    for graph_name, model in graphs.models.items():
        for parameter in parameters(model):
            shape = [int(size) for size in parameter.shape]
            parameter.const_value = ir.tensor(np.zeros(shape, parameter.dtype.numpy()), parameter.dtype, name=parameter.name)
        protos[graph_name] = ir.to_proto(model)
    return Case(folder, family, spec, pruning, capacities, request.param, graphs, protos)


def tensor_specs(values: Any) -> tuple[TensorSpec, ...]:
    names = {value: key for key, value in ONNX_TYPES.items()}
    return tuple(
        TensorSpec(
            value.name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            names[value.type.tensor_type.elem_type],
        )
        for value in values
    )


def all_nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g.node)


def read_names(nodes: Any, outputs: set[str]) -> set[str]:
    """Names that ``outputs`` depend on."""
    needed = set(outputs)
    for node in reversed(nodes):
        if needed & set(node.output):
            for inner in all_nodes([node]):
                needed |= set(inner.input)
    return needed


def vision_layers(spec: ModelSpec) -> int:
    if isinstance(spec.vision, QwenVisionConfig):
        return spec.vision.num_layers
    assert isinstance(spec.vision, ClipVisionConfig)
    return spec.vision.feature_layers


def test_valid_and_inferable(case: Case) -> None:
    for name, proto in case.protos.items():
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        # Inferred without what the contract declares, types and fixed sizes come out the same.
        bare = onnx.ModelProto()
        bare.CopyFrom(proto)
        for output in bare.graph.output:
            output.type.Clear()
        inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
        found = {output.name: output.type.tensor_type for output in inferred.graph.output}
        for spec in case.graphs.contracts[name].outputs:
            assert found[spec.name].elem_type in (ONNX_TYPES[spec.dtype], 0), spec
            if found[spec.name].HasField("shape"):
                sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in found[spec.name].shape.dim]
                assert len(sizes) == len(spec.shape)
                for size, declared in zip(sizes, spec.shape, strict=True):
                    assert size is None or size == declared, spec


def test_interface_is_the_contract(case: Case) -> None:
    for name, proto in case.protos.items():
        contract = case.graphs.contracts[name]
        assert proto.graph.name == contract.name == name
        assert tensor_specs(proto.graph.input) == contract.inputs
        assert tensor_specs(proto.graph.output) == contract.outputs
        assert decode(GraphContract, json.loads(json.dumps(encode(contract)))) == contract


def test_contracts_fit_together(case: Case) -> None:
    """What one graph gives is what the next one takes, and the caches have the capacities."""
    contracts, decoder = case.graphs.contracts, case.spec.decoder
    encoder, chooser = contracts["vision_encoder"], contracts["selector"]
    assert chooser.inputs == (
        *encoder.outputs,
        TensorSpec("token_order", ("tokens",), "int64"),
        TensorSpec("quota", ("crops", "steps"), "bool"),
    )
    assert ("cls_attention" in {spec.name for spec in chooser.inputs}) == (
        case.pruning.stage1 == Repulsion("saliency") and case.pruning.keep_stage1 < case.pruning.num_visual_tokens
    )
    assert [spec.shape for spec in chooser.outputs] == [("kept",), ("kept", decoder.hidden_size)]
    lower, upper = contracts["llm_lower"], contracts["llm_upper"]
    assert chooser.outputs[1].dtype == lower.input("visual_embeds").dtype == case.dtype
    for output, name in (("hidden_states", "hidden_states"), ("last_row", "last_row"), ("kept_position_ids", "position_ids")):
        spec = next(spec for spec in lower.outputs if spec.name == output)
        assert dataclasses.replace(spec, name=name) == upper.input(name)
    axes = ("batch", 3) if isinstance(case.spec.vision, QwenVisionConfig) else ("batch",)
    assert lower.input("position_ids").shape == (*axes, "sequence") and upper.input("position_ids").shape == (
        *axes,
        "survivors",
    )
    layer = case.pruning.prune_layer
    for contract, layers, capacity in (
        (lower, range(layer), case.capacities.rows[0]),
        (upper, range(layer, decoder.num_layers), case.capacities.rows[1]),
    ):
        expected = [(f"{kind}_cache.{i}", f"{kind}_cache_out.{i}") for i in layers for kind in ("key", "value")]
        assert list(contract.caches) == expected
        for before, after in contract.caches:
            shape = ("batch", decoder.num_kv_heads, capacity, decoder.head_dim)
            assert contract.input(before) == TensorSpec(before, shape, case.dtype)
            assert TensorSpec(after, shape, case.dtype) in contract.outputs
    assert upper.outputs[0] == TensorSpec("logits", ("batch", decoder.vocab_size), "float32")


def test_every_input_and_weight_is_used(case: Case) -> None:
    for proto in case.protos.values():
        used = read_names(proto.graph.node, {output.name for output in proto.graph.output})
        assert {item.name for item in proto.graph.input} <= used
        assert {item.name for item in proto.graph.initializer} <= used
        for function in proto.functions:
            assert set(function.input) <= read_names(function.node, set(function.output))


def test_operators(case: Case) -> None:
    """Opset 24, standard operators, and the two functions whose bodies are standard operators again."""
    functions = {"selector": {"RepulsionSelect"}, "llm_lower": {"LastTokenTopK"}}
    if case.pruning.keep_stage1 == case.pruning.num_visual_tokens:
        del functions["selector"]
    for name, proto in case.protos.items():
        own = functions.get(name, set())
        opsets = {item.domain: item.version for item in proto.opset_import}
        assert opsets == ({"": 24, "sts": 1} if own else {"": 24})
        assert {(function.domain, function.name) for function in proto.functions} == {("sts", item) for item in own}
        assert [node.op_type for node in all_nodes(proto.graph.node) if node.domain] == sorted(own)
        for function in proto.functions:
            assert {item.domain: item.version for item in function.opset_import} == {"": 24}
            inner = list(all_nodes(function.node))
            assert inner and all(node.domain == "" for node in inner)
        for node in [*all_nodes(proto.graph.node), *(n for f in proto.functions for n in all_nodes(f.node))]:
            if not node.domain:
                assert onnx.defs.has(node.op_type, 24), node.op_type
        layers = {
            "vision_encoder": vision_layers(case.spec),
            "selector": 0,
            "llm_lower": case.pruning.prune_layer,
            "llm_upper": case.spec.decoder.num_layers - case.pruning.prune_layer,
        }[name]
        kinds = [node.op_type for node in proto.graph.node]
        assert kinds.count("Attention") == layers
        assert kinds.count("TensorScatter") == (2 * layers if name.startswith("llm") else 0)
        # One copy of every weight: no casts or transposes of them (layers.py).
        weights = {item.name for item in proto.graph.initializer}
        assert not [node for node in proto.graph.node if node.op_type in ("Cast", "Transpose") and set(node.input) & weights]


def test_names_in_functions_are_their_own(case: Case) -> None:
    """TensorRT's parser takes a function's constant for one of the same name that the graph has after the call."""
    for proto in case.protos.values():
        names = {name for node in all_nodes(proto.graph.node) for name in node.output}
        for function in proto.functions:
            inner = {name for node in all_nodes(function.node) for name in node.output} - {*function.input, *function.output}
            assert not names & inner


def test_the_selector_knows_the_largest_picture(case: Case) -> None:
    """With more rows than a matrix is made for, a step computes its own."""
    specs = [case.spec]
    if isinstance(case.spec.vision, QwenVisionConfig):
        specs.append(dataclasses.replace(case.spec, max_image_tokens=5000))
    reciprocals = []
    for spec in specs:
        model = build(spec, case.family.names, case.pruning, case.capacities, case.dtype).models["selector"]
        reciprocals.append([node.op_type for function in model.functions.values() for node in function].count("Reciprocal"))
    prunes = case.pruning.keep_stage1 < case.pruning.num_visual_tokens
    assert reciprocals == [prunes, 0][: len(specs)]


def test_parameters_are_the_checkpoints(case: Case) -> None:
    """Names and shapes as on the hub; the four graphs together take every tensor that has no reason to be left out."""
    stored: dict[str, tuple[int, ...]] = {}
    for file in case.checkpoint.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            stored.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    expected = {name: shape for name, shape in stored.items() if case.family.unused_reason(name, case.spec) is None}
    fresh = case.fresh()
    found: dict[str, tuple[int, ...]] = {}
    for model in fresh.models.values():
        for parameter in parameters(model):
            assert parameter.dtype == ir.DataType[{"float32": "FLOAT"}.get(case.dtype, case.dtype.upper())]
            found[parameter.name] = tuple(int(size) for size in parameter.shape)
    assert found == expected
    layers = vision_layers(case.spec)
    unused = set(stored) - set(expected)
    assert all("post_layernorm" in name or int(name.split("layers.")[1].split(".")[0]) >= layers for name in unused)
    names = case.family.names
    head, embedding = f"{names.head}.weight", f"{names.decoder}.embed_tokens.weight"
    lower = {parameter.name for parameter in parameters(fresh.models["llm_lower"])}
    assert ("image_newline" in lower) == (case.spec.family == "llava_next")
    upper = {parameter.name for parameter in parameters(fresh.models["llm_upper"])}
    assert (embedding if case.spec.decoder.tie_word_embeddings else head) in upper
    assert len(upper & {head, embedding}) == 1


def test_no_data_but_small_constants(case: Case) -> None:
    for name, model in case.fresh().models.items():
        pending = {parameter.name for parameter in parameters(model)}
        embedded = {key: item for key, item in model.graph.initializers.items() if key not in pending}
        sizes: list[int] = []  # of the rotary tables
        if name.startswith("llm"):
            sizes = [case.capacities.positions, case.spec.decoder.head_dim // 2]
        elif name == "vision_encoder" and isinstance(case.spec.vision, QwenVisionConfig):
            vision = case.spec.vision
            sizes = [vision.max_grid_side, vision.hidden_size // vision.num_heads // 4]
        tables = {"rotary_cos", "rotary_sin"} if sizes else set()
        assert {key for key, item in embedded.items() if item.const_value.size > 1} == tables
        for table in tables:
            assert list(embedded[table].const_value.shape) == sizes
        for node in case.protos[name].graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    assert np.prod(attribute.t.dims) <= case.capacities.rows[0]


def test_tables_in_the_graphs_are_the_float32_ones_rounded_once(case: Case) -> None:
    decoder = case.spec.decoder
    inverse = inverse_frequencies(decoder.head_dim, decoder.rope_theta, decoder.rope_factor)
    for name in ("llm_lower", "llm_upper"):
        for kind, table in zip(("cos", "sin"), rotary_tables(inverse, case.capacities.positions), strict=True):
            stored = case.graphs.models[name].graph.initializers[f"rotary_{kind}"].const_value
            assert stored.dtype.name == ("FLOAT" if case.dtype == "float32" else case.dtype.upper())
            np.testing.assert_array_equal(stored.numpy(), table.astype(stored.numpy().dtype))
