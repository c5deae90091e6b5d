"""One operator at a time: lowered and run, against numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from sts_export.errors import BackendError
from sts_export.lowering.tensorrt import lower

Array = NDArray[Any]
OLD = (10, 3)
TYPES = {
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}


def graph_of(
    operator: str,
    inputs: dict[str, Array | None],
    shape: list[Any],
    constants: dict[str, Array] | None = None,
    **attributes: Any,
) -> bytes:
    """A model of one node; batch (the first dimension) and rows are symbolic where an input is not a table.

    shape: of the output; its type is that of the first input.
    """
    values = []
    for name, array in inputs.items():
        if array is not None:
            dims: list[Any] = list(array.shape)
            if name not in ("cos", "sin", "weight"):
                dims[0] = "batch"
            values.append(helper.make_tensor_value_info(name, TYPES[array.dtype], dims))
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    names = ["" if array is None else name for name, array in inputs.items()] + list(constants or {})
    node = helper.make_node(operator, names, ["out"], name="the_node", **attributes)
    first = next(array for array in inputs.values() if array is not None)
    output = helper.make_tensor_value_info("out", TYPES[first.dtype], shape)
    graph = helper.make_graph([node], "one", values, [output], initializers)
    whole: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()
    return whole


def computed(graph: bytes, inputs: dict[str, Array | None], *, to_the_letter: bool = False) -> Array:
    """On ONNX Runtime; or ``to_the_letter``, each operator in its own types (ONNX Runtime has float32 products only)."""
    lowered = lower(graph, OLD, plugins=False).graph
    kinds = {node.op_type for node in onnx.load_model_from_string(lowered).graph.node}
    assert not kinds & {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter", "CumSum"}
    feeds = {name: array for name, array in inputs.items() if array is not None}
    evaluator: Any = ReferenceEvaluator(lowered) if to_the_letter else ort.InferenceSession(lowered)
    (result,) = evaluator.run(None, feeds)
    return np.asarray(result)


def attention(query: Array, key: Array, value: Array, mask: Array | None, scale: float) -> NDArray[np.float64]:
    """In float64; rows without any key are NaN."""
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x.astype(np.float64), group, axis=1) for x in (key, value))
    scores = query.astype(np.float64) @ key.swapaxes(2, 3) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True) @ value
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(heads: int, kv_heads: int, masked: bool, dtype: type) -> None:
    rng = np.random.default_rng(heads)
    shapes = {"query": (2, heads, 3, 8), "key": (2, kv_heads, 7, 8), "value": (2, kv_heads, 7, 8)}
    inputs: dict[str, Any] = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    if masked:
        inputs["mask"] = rng.random((2, 1, 3, 7)) < 0.5
        inputs["mask"][..., 2] = True
    graph = graph_of("Attention", inputs, ["batch", heads, 3, 8], scale=0.3)
    wanted = attention(inputs["query"], inputs["key"], inputs["value"], inputs.get("mask"), 0.3)
    tolerance = 1e-6 if dtype == np.float32 else 3e-3
    np.testing.assert_allclose(computed(graph, inputs), wanted, rtol=tolerance, atol=tolerance)


def test_attention_without_a_scale() -> None:
    inputs: dict[str, Any] = {name: np.random.default_rng(2).standard_normal((1, 2, 5, 16)) for name in "qkv"}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    wanted = attention(inputs["q"], inputs["k"], inputs["v"], None, 0.25)
    graph = graph_of("Attention", inputs, ["batch", 2, 5, 16])
    np.testing.assert_allclose(computed(graph, inputs), wanted, rtol=1e-5, atol=1e-6)


def test_attention_does_not_overflow_in_float16() -> None:
    """Products up to 160,000 and scores up to 40,000, where float16 ends at 65,504."""
    rows = np.array([100.0, 99.0, 98.0, -100.0], np.float16)
    key = np.repeat(rows[None, None, :, None], 16, axis=3)
    inputs: dict[str, Any] = {"query": np.full((1, 1, 1, 16), 100, np.float16), "key": key}
    inputs["value"] = np.arange(4 * 16, dtype=np.float16).reshape(1, 1, 4, 16)
    graph = graph_of("Attention", inputs, ["batch", 1, 1, 16], scale=0.25)
    for to_the_letter in (True, False):
        found = computed(graph, inputs, to_the_letter=to_the_letter)
        np.testing.assert_array_equal(found, inputs["value"][:, :, :1])  # the largest score takes all


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_attention_in_16_bits(dtype: type) -> None:
    """With the head size of the decoders and scores of a few units: no worse than the rounding of its operands."""
    rng = np.random.default_rng(9)
    shapes = {"query": (1, 2, 6, 128), "key": (1, 1, 40, 128), "value": (1, 1, 40, 128)}
    inputs: dict[str, Any] = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    scale = 128**-0.5
    found = computed(graph_of("Attention", inputs, ["batch", 2, 6, 128], scale=scale), inputs, to_the_letter=True)
    assert found.dtype == dtype
    wanted = attention(inputs["query"], inputs["key"], inputs["value"], None, scale)
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(found.astype(np.float64), wanted, atol=2 * epsilon)


def test_a_row_without_keys_is_finite() -> None:
    """TensorRT's fused kernels make it finite too; a NaN in a padding row would spread through a whole layer."""
    inputs: dict[str, Any] = {name: np.ones((1, 1, 2, 8), np.float32) for name in "qkv"}
    inputs["mask"] = np.array([[[[True, False], [False, False]]]])
    assert np.isfinite(computed(graph_of("Attention", inputs, ["batch", 1, 2, 8], scale=1.0), inputs)).all()


@pytest.mark.parametrize("by_position", [True, False])
def test_rotary_embedding(by_position: bool) -> None:
    """Each pair (channel i, channel i + head_dim / 2) is a complex number that is turned by its angle."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 3, 5, 8)).astype(np.float32)
    table = rng.standard_normal((40, 4)).astype(np.float32)
    positions = rng.integers(0, 40, (2, 5))
    angles = table[positions]  # [batch, rows, head_dim / 2]
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, None]
    inputs: dict[str, Any] = {"x": x}
    if by_position:
        inputs |= {"cos": np.cos(table), "sin": np.sin(table), "position_ids": positions}
    else:
        inputs |= {"cos_rows": np.cos(angles), "sin_rows": np.sin(angles)}
    found = computed(graph_of("RotaryEmbedding", inputs, ["batch", 3, 5, 8]), inputs)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rms_normalization(dtype: type) -> None:
    """Squares of 300 and more do not fit into float16."""
    rng = np.random.default_rng(7)
    inputs: dict[str, Any] = {"x": (500 * rng.standard_normal((6, 32))).astype(dtype)}
    inputs["weight"] = rng.standard_normal(32).astype(dtype)
    x = inputs["x"].astype(np.float64)
    wanted = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-3) * inputs["weight"]
    graph = graph_of("RMSNormalization", inputs, ["batch", 32], axis=-1, epsilon=1e-3)
    tolerance = 1e-6 if dtype == np.float32 else 2e-3
    np.testing.assert_allclose(computed(graph, inputs), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 3])
def test_tensor_scatter(rows: int) -> None:
    """Each request at its own index; what does not fit is not written."""
    rng = np.random.default_rng(8)
    cache = rng.standard_normal((4, 2, 6, 3)).astype(np.float32)
    update = rng.standard_normal((4, 2, rows, 3)).astype(np.float32)
    index = np.array([0, 3, 2, 5])
    wanted = cache.copy()
    for request, start in enumerate(index):
        count = min(rows, 6 - start)
        wanted[request, :, start : start + count] = update[request, :, :count]
    inputs: dict[str, Any] = {"cache": cache, "update": update, "write_index": index}
    found = computed(graph_of("TensorScatter", inputs, ["batch", 2, 6, 3], axis=2), inputs)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 256, 300, 20000])
def test_cumsum(length: int) -> None:
    x = np.random.default_rng(length).integers(0, 2, (3, length))
    x[2] = 1  # the largest sums
    graph = graph_of("CumSum", {"x": x}, ["batch", length], {"axis": np.array(1)})
    found = computed(graph, {"x": x})
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.cumsum(x, axis=1))


@pytest.mark.parametrize(("height", "width"), [(12, 8), (14, 11)])
def test_patch_embedding_in_bfloat16(height: int, width: int) -> None:
    """Patches of 4 x 4; what is left over at the right and lower edges is ignored."""
    rng = np.random.default_rng(10)
    x = rng.standard_normal((2, 3, height, width)).astype(ml_dtypes.bfloat16)
    weight = rng.standard_normal((5, 3, 4, 4)).astype(ml_dtypes.bfloat16)
    rows, columns = height // 4, width // 4
    wanted = np.zeros((2, 5, rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].astype(np.float64)
            wanted[:, :, row, column] = np.einsum("bchw,fchw->bf", patch, weight.astype(np.float64))
    inputs: dict[str, Any] = {"x": x, "weight": weight}
    graph = graph_of("Conv", inputs, ["batch", 5, rows, columns], kernel_shape=[4, 4], strides=[4, 4])
    assert not any(
        node.op_type == "Conv" for node in onnx.load_model_from_string(lower(graph, OLD, plugins=False).graph).graph.node
    )
    found = computed(graph, inputs, to_the_letter=True).astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.2)


ROWS = np.zeros((1, 2, 4, 8), np.float32)
HALF = ROWS.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "reason"),
    [
        ("Attention", {"q": ROWS, "k": ROWS, "v": ROWS}, {"is_causal": 1}, "is_causal = 1"),
        ("Attention", {"q": ROWS, "k": ROWS, "v": ROWS}, {"softcap": 2.0}, "softcap = 2.0"),
        ("Attention", {"q": ROWS, "k": ROWS, "v": ROWS, "mask": ROWS[..., :4]}, {}, "a mask that is not bool"),
        (
            "RotaryEmbedding",
            {"x": ROWS, "c": ROWS[0, :1, :, :4], "s": ROWS[0, :1, :, :4]},
            {"interleaved": 1},
            "interleaved = 1",
        ),
        ("TensorScatter", {"c": ROWS, "u": ROWS, "w": np.zeros(1, np.int64)}, {"axis": 1}, "capacity, head_dim"),
        ("TensorScatter", {"c": ROWS, "u": ROWS, "w": np.zeros(1, np.int64)}, {"mode": "circular"}, "mode = circular"),
        ("RMSNormalization", {"x": ROWS, "w": ROWS[0, 0]}, {"axis": -2}, "axis = -2"),
        ("Conv", {"x": HALF, "weight": HALF[:, :, :2, :2]}, {"strides": [1, 1], "kernel_shape": [2, 2]}, "overlap"),
        (
            "Conv",
            {"x": HALF, "weight": HALF[:, :, :2, :2]},
            {"strides": [2, 2], "pads": [1, 1, 1, 1]},
            r"pads = \[1, 1, 1, 1\]",
        ),
        ("Conv", {"x": ROWS, "w": ROWS[:, :, :2, :2]}, {"strides": [1, 1], "pads": [1, 1, 1, 1]}, None),
        ("LpPool", {"x": ROWS}, {"kernel_shape": [1, 1], "dilations": [1, 1]}, None),
        ("Swish", {"x": ROWS}, {}, "opset 20"),
    ],
)
def test_other_forms_are_refused(operator: str, inputs: dict[str, Any], attributes: dict[str, Any], reason: str | None) -> None:
    """Rather than lowered wrongly; an operator that needs no lowering passes."""
    graph = graph_of(operator, inputs, [1, 2, 4, 8], **attributes)
    if reason is None:
        lower(graph, OLD, plugins=False)
        return
    with pytest.raises(BackendError, match=rf"the_node.*{reason}.*use TensorRT 10\.15 or later") as error:
        lower(graph, OLD, plugins=False)
    assert "\n" not in str(error.value)
