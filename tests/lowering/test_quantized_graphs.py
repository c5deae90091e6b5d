"""Quantized graphs on ONNX Runtime: the operators against their definitions, a decoder against its float version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxscript import nn

from sts_export.exporting.quantized_weights import block_scales, block_values, column_scales, column_values
from sts_export.graphs.configs import DecoderConfig
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.decoder.embedding import Embedding
from sts_export.graphs.decoder.part import decoder_part
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.graphs.layers import Linear
from sts_export.graphs.model import build_model, parameters
from sts_export.lowering.quantized_graphs import (
    SCHEMES,
    Blocks,
    Columns,
    Form,
    Quantization,
    Scheme,
    chooser,
    fitting_block,
    quantize,
)
from sts_export.pruning.stage2.last_token import LastToken

Weights = dict[str, NDArray[np.float32]]
FORMS: list[Form] = [Columns(), Blocks(8, 16), Blocks(8, 32), Blocks(8, 128), Blocks(4, 16), Blocks(4, 32), Blocks(4, 64)]


def bind(model: ir.Model, weights: Weights, quantization: Quantization | None = None) -> None:
    """Give every parameter its data; the quantized ones from whole matrices in memory."""
    made: dict[str, NDArray[Any]] = {}
    for item in quantization.weights if quantization else ():
        source = weights[item.source]
        if isinstance(item.form, Columns):
            made[item.scales_name] = column_scales(source)
            made[item.data_name] = column_values(source, made[item.scales_name]).T
        else:
            made[item.scales_name] = block_scales(source, item.form)
            made[item.data_name] = block_values(source, made[item.scales_name], item.form)
    for parameter in parameters(model):
        array = made[parameter.name] if parameter.name in made else weights[parameter.name]
        shape = [int(size) for size in parameter.shape]
        parameter.const_value = ir.tensor(np.ascontiguousarray(array).reshape(shape), parameter.dtype, name=parameter.name)


def dequantized(weights: NDArray[np.float32], form: Form) -> NDArray[np.float64]:
    """What the operator multiplies with."""
    if isinstance(form, Columns):
        scales = column_scales(weights)
        return column_values(weights, scales).astype(np.float64) * scales[:, None]
    scales = block_scales(weights, form)
    packed = block_values(weights, scales, form).astype(np.int64)
    values = packed if form.bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
    wide: NDArray[np.float64] = (values - 2 ** (form.bits - 1)) * scales[..., None].astype(np.float64)
    return wide.reshape(len(weights), -1)[:, : weights.shape[1]]


def activation_error(x: NDArray[np.float32], form: Form) -> NDArray[np.float64]:
    """Half a step of the int8 activations: of a row, or of a block of a row."""
    if isinstance(form, Columns):
        return np.repeat(np.abs(x).max(1, keepdims=True) / 254.0, x.shape[1], 1)
    blocks = np.pad(np.abs(x), ((0, 0), (0, -x.shape[1] % form.block_size))).reshape(len(x), -1, form.block_size)
    return np.repeat(blocks.max(2) / 254.0, form.block_size, 1)[:, : x.shape[1]]


def run(model: ir.Model, feeds: dict[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> list[NDArray[Any]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, feeds))


def linear_model(columns: int, rows: int, *, bias: bool, twice: bool = False) -> ir.Model:
    """x [n, in] -> y [n, out]; ``twice`` adds a second layer on the same x."""
    first = Linear(columns, rows, bias=bias, dtype="float32")
    first._set_name("first")
    second = Linear(columns, rows, bias=bias, dtype="float32")
    second._set_name("second")
    names = ("y", "z") if twice else ("y",)
    contract = GraphContract(
        "linear",
        (TensorSpec("x", ("n", columns), "float32"),),
        tuple(TensorSpec(name, ("n", rows), "float32") for name in names),
    )

    def forward(op: Any, x: ir.Value) -> list[ir.Value]:
        return [layer(op, x) for layer in ([first, second] if twice else [first])]

    return build_model(contract, forward)


def random_weights(model: ir.Model, seed: int = 0, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for parameter in parameters(model):
        shape = [int(size) for size in parameter.shape]
        values = rng.standard_normal(shape) * scale / (shape[1] ** 0.5 if len(shape) == 2 else 1)
        weights[str(parameter.name)] = (values + ("norm" in str(parameter.name))).astype(np.float32)
    return weights


def always(form: Form | None) -> Callable[[str], Form | None]:
    return lambda name: form


@settings(deadline=None, max_examples=60)
@given(
    form=st.sampled_from(FORMS),
    columns=st.integers(1, 150),
    rows=st.integers(1, 40),
    batch=st.sampled_from([1, 2, 7, 33]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_operators_do_what_quantization_implies(form: Form, columns: int, rows: int, batch: int, bias: bool, seed: int) -> None:
    """Any shape, also those that are no multiple of a block, any number of rows, within the bound of the rounding."""
    model = linear_model(columns, rows, bias=bias)
    weights = random_weights(model, seed)
    quantization = quantize(model, always(form))
    assert [(item.rows, item.columns, item.form) for item in quantization.weights] == [(rows, columns, form)]
    assert not quantization.kept and "first.weight" not in model.graph.initializers
    bind(model, weights, quantization)
    x = np.random.default_rng(seed + 1).standard_normal((batch, columns)).astype(np.float32)
    (y,) = run(model, {"x": x})
    wide = dequantized(weights["first.weight"], form)
    expected = x.astype(np.float64) @ wide.T + (weights["first.bias"] if bias else 0)
    bound = activation_error(x, form) @ np.abs(wide).T
    assert (np.abs(y - expected) <= bound * 1.02 + 1e-5).all()


def test_columns_are_integer_arithmetic() -> None:
    """To the rounding of float32 the operator is numpy's integer product of the same integers."""
    rng = np.random.default_rng(3)
    model = linear_model(96, 40, bias=True)
    weights = random_weights(model)
    quantization = quantize(model, always(Columns()))
    bind(model, weights, quantization)
    x = rng.standard_normal((17, 96)).astype(np.float32)
    x[5] = 0
    largest = np.abs(x).max(1, keepdims=True)
    integers = np.rint(x / np.where(largest, largest, 1) * np.float32(127)).astype(np.int64)
    scales = column_scales(weights["first.weight"])
    product = integers @ column_values(weights["first.weight"], scales).T.astype(np.int64)
    expected = product * largest / 127 * scales + weights["first.bias"]
    (y,) = run(model, {"x": x})
    np.testing.assert_array_equal(y[5], weights["first.bias"])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("batch", [1, 40])
def test_extreme_values_do_not_saturate(form: Form, batch: int) -> None:
    """Kernels without VNNI add two products in 16 bits: with |weight| up to 127 this result would be half of the truth."""
    model = linear_model(256, 64, bias=False)
    quantization = quantize(model, always(form))
    bind(model, {"first.weight": np.ones((64, 256), np.float32)}, quantization)
    (y,) = run(model, {"x": np.ones((batch, 256), np.float32)})
    tolerance = 1 / 8 if isinstance(form, Blocks) and form.bits == 4 else 1 / 100
    np.testing.assert_allclose(y, 256, rtol=tolerance)


def test_an_extreme_token_leaves_the_others_alone() -> None:
    model = linear_model(128, 64, bias=False)
    weights = random_weights(model)
    bind(model, weights, quantize(model, always(Columns())))
    x = np.random.default_rng(0).standard_normal((20, 128)).astype(np.float32)
    (before,) = run(model, {"x": x})
    x[0] *= 1000
    (after,) = run(model, {"x": x})
    np.testing.assert_array_equal(before[1:], after[1:])


def test_shared_activations_are_quantized_once() -> None:
    model = linear_model(64, 32, bias=True, twice=True)
    weights = random_weights(model)
    quantization = quantize(model, always(Columns()))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 1 and kinds.count("MatMulIntegerToFloat") == 2
    bind(model, weights, quantization)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    for name, result in zip(("first", "second"), run(model, {"x": x}, ["y", "z"]), strict=True):
        expected = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        assert np.linalg.norm(result - expected) < 0.03 * np.linalg.norm(expected)


def table_model(width: int, vocab: int, *, tied: bool) -> ir.Model:
    """ids -> rows of the embedding, and their product with the embedding (tied) or nothing."""
    config = decoder(width, vocab)
    table = Embedding(config, "float32")
    table._set_name("embed_tokens")
    outputs = [TensorSpec("rows", ("batch", "n", width), "float32")]
    if tied:
        outputs.append(TensorSpec("scores", ("m", vocab), "float32"))
    contract = GraphContract("table", (TensorSpec("ids", ("batch", "n"), "int64"),), tuple(outputs))

    def forward(op: Any, ids: ir.Value) -> list[ir.Value]:
        rows = table(op, ids)
        if not tied:
            return [rows]
        flat = op.Reshape(rows, op.Constant(value_ints=[-1, width]))
        return [rows, op.Gemm(flat, table.weight, transB=1)]

    return build_model(contract, forward)


def decoder(width: int = 64, vocab: int = 50, *, tied: bool = False, bias: bool = False) -> DecoderConfig:
    return DecoderConfig(
        hidden_size=width,
        intermediate_size=2 * width + 8,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        attention_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize(("width", "bits", "block"), [(64, 8, 64), (128, 8, 128), (64, 4, 64), (48, 8, 16), (96, 4, 32)])
def test_embedding_lookup(width: int, bits: int, block: int) -> None:
    """Exactly the dequantized rows; a block that does not divide the row is halved until it does."""
    model = table_model(width, 50, tied=False)
    weights = random_weights(model)
    quantization = quantize(model, always(Blocks(bits, 128)))
    (item,) = quantization.weights
    assert item.form == Blocks(bits, block)
    bind(model, weights, quantization)
    ids = np.array([[0, 49, 7], [7, 1, 48]])
    (rows,) = run(model, {"ids": ids})
    np.testing.assert_allclose(rows, dequantized(weights["embed_tokens.weight"], item.form)[ids], rtol=1e-6)


def test_a_width_no_block_divides_stays_float() -> None:
    assert fitting_block(100, 128) is None and fitting_block(4096, 128) == 128 and fitting_block(48, 128) == 16
    model = table_model(100, 50, tied=True)
    quantization = quantize(model, always(Blocks(8, 128)))
    assert not quantization.weights and "multiple of 16" in quantization.kept["embed_tokens.weight"]
    assert [parameter.name for parameter in parameters(model)] == ["embed_tokens.weight"]
    assert "com.microsoft" not in model.graph.opset_imports
    quantization = quantize(model, always(Columns()))
    assert not quantization.weights and "lookup" in quantization.kept["embed_tokens.weight"]


def test_float16_graphs_are_refused() -> None:
    layer = Linear(64, 8, bias=False, dtype="float16")
    layer._set_name("first")
    contract = GraphContract("linear", (TensorSpec("x", ("n", 64), "float16"),), (TensorSpec("y", ("n", 8), "float16"),))
    model = build_model(contract, lambda op, x: [layer(op, x)])
    with pytest.raises(ValueError, match="float32 around"):
        quantize(model, always(Columns()))


def test_other_uses_keep_a_weight_float() -> None:
    """A weight that is also multiplied the other way round, and a parameter that no linear layer takes."""

    class Odd(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("odd")
            self.weight = nn.Parameter([8, 8], ir.DataType.FLOAT)
            self.positions = nn.Parameter([8, 8], ir.DataType.FLOAT)

        def forward(self, op: Any, x: ir.Value) -> ir.Value:
            return op.MatMul(op.Gemm(op.Add(x, self.positions), self.weight, transB=1), self.weight)

    contract = GraphContract("odd", (TensorSpec("x", (8, 8), "float32"),), (TensorSpec("y", (8, 8), "float32"),))
    odd = Odd()
    model = build_model(contract, lambda op, x: [odd(op, x)])
    quantization = quantize(model, always(Columns()))
    assert not quantization.weights and quantization.kept.keys() == {"odd.weight"}


@pytest.mark.parametrize("bits", [0, 2, 16])
def test_impossible_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Blocks(bits, 32)


@pytest.mark.parametrize("block", [0, 8, 48])
def test_impossible_blocks(block: int) -> None:
    with pytest.raises(ValueError, match="block size"):
        Blocks(4, block)


def upper_model(config: DecoderConfig) -> ir.Model:
    _, upper = decoder_parts(config.num_layers, (1,))
    stage2 = LastToken().build  # of no meaning: the part is the last one
    return decoder_part(config, upper, "float32", prefix="model", head_name="lm_head", capacity=24, positions=24, stage2=stage2)


def upper_feeds(config: DecoderConfig, rows: int, start: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(rows)
    feeds: dict[str, NDArray[Any]] = {
        "hidden_states": rng.standard_normal((1, rows, config.hidden_size)).astype(np.float32),
        "last_row": np.array([rows - 1]),
        "position_ids": np.arange(start, start + rows)[None],
        "write_index": np.array([start]),
    }
    for layer in range(1, config.num_layers):
        for kind in ("key", "value"):
            cache = rng.standard_normal((1, config.num_kv_heads, 24, config.head_dim)).astype(np.float32)
            feeds[f"{kind}_cache.{layer}"] = cache
    return feeds


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize(("scheme", "bound"), [("int8", 0.1), ("int4", 0.4)])
def test_a_decoder_and_its_quantized_version(scheme: str, bound: float, tied: bool, bias: bool) -> None:
    """Prefill and decode; interface, names of the rest, and everything but the linear layers unchanged."""
    config = decoder(tied=tied, bias=bias)
    plain, rounded, model = upper_model(config), upper_model(config), upper_model(config)
    weights = random_weights(plain, 5)
    bind(plain, weights)
    quantization = quantize(model, chooser(SCHEMES[scheme], wide=False))
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    by_name = {item.source: item.form for item in quantization.weights}
    assert by_name.keys() == {name for name, array in weights.items() if array.ndim == 2} and not quantization.kept
    form = by_name[head]
    assert isinstance(form, Blocks) and form.bits == 8
    left = {parameter.name for parameter in parameters(model)}
    made = {name for item in quantization.weights for name in (item.data_name, item.scales_name)}
    assert left == made | {name for name, array in weights.items() if array.ndim == 1}
    assert [value.name for value in model.graph.outputs] == [value.name for value in plain.graph.outputs]
    assert [value.shape for value in model.graph.outputs] == [value.shape for value in plain.graph.outputs]
    assert "Gemm" not in {node.op_type for node in model.graph} and model.graph.opset_imports["com.microsoft"] == 1
    bind(model, weights, quantization)
    bind(rounded, weights | {name: dequantized(weights[name], form).astype(np.float32) for name, form in by_name.items()})
    names = [value.name for value in plain.graph.outputs]
    for rows, start in ((9, 0), (1, 9)):
        feeds = upper_feeds(config, rows, start)
        for name, *results in zip(names, run(model, feeds), run(rounded, feeds), run(plain, feeds), strict=True):
            ours, same_weights, exact = results
            # Only the activations are rounded more than in `rounded`; a small random decoder amplifies that to 5 %.
            assert np.linalg.norm(ours - same_weights) <= 0.08 * np.linalg.norm(same_weights), name
            assert np.linalg.norm(ours - exact) <= bound * np.linalg.norm(exact), name


def test_a_tied_matrix_has_the_same_bytes_for_both_uses() -> None:
    """In one graph it would be two shapes of one tensor; embedding and head lie in two graphs, one tensor serves both."""
    form = Blocks(8, 128)
    lower, upper = table_model(64, 50, tied=False), linear_model(64, 50, bias=False)
    upper.graph.initializers["first.weight"].name = "embed_tokens.weight"
    (first,), (second,) = quantize(lower, always(form)).weights, quantize(upper, always(form)).weights
    assert first == second
    for part in (first.data_name, first.scales_name):
        sizes = [int(np.prod([int(size) for size in graph.graph.initializers[part].shape])) for graph in (lower, upper)]
        assert sizes[0] == sizes[1]


def test_nothing_chosen_changes_nothing() -> None:
    model, plain = upper_model(decoder()), upper_model(decoder())
    assert quantize(model, chooser(Scheme(None, None, None), wide=False)).weights == ()
    assert ir.to_proto(model).SerializeToString() == ir.to_proto(plain).SerializeToString()


def test_every_kind_has_its_own_form() -> None:
    scheme = Scheme(wide=Columns(), layer=Blocks(4, 32), table=Blocks(8, 128))
    assert chooser(scheme, wide=True)("vision_tower.encoder.layers.0.mlp.fc1.weight") == Columns()
    assert chooser(scheme, wide=False)("language_model.model.layers.0.mlp.up_proj.weight") == Blocks(4, 32)
    assert chooser(scheme, wide=False)("language_model.model.embed_tokens.weight") == Blocks(8, 128)
    assert chooser(scheme, wide=False)("language_model.lm_head.weight") == Blocks(8, 128)
