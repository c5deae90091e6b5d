"""What a session is made from: inputs that come from the host in float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from sts_export.graphs.configs import Dtype
from sts_export.graphs.towers.clip import clip_encoder
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from tests.graphs.onnx_models import bind, random_weights, serialized

CLIP = ClipVisionConfig(28, 7, 32, 64, 2, 2, 1e-5, "quick_gelu")


def tower(dtype: Dtype) -> bytes:
    encoder = clip_encoder(CLIP, dtype, prefix="v")
    bind(encoder, random_weights(encoder))
    return serialized(encoder)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pixels_are_cast_by_the_graph(device: str) -> None:
    """The same features as from pixels that numpy has cast; the CPU computes in float32, and skips that rounding."""
    plain = tower("float16")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 28, 28)).astype(np.float32)
    features = []
    for names, given in (((), pixels.astype(np.float16)), (("pixel_values",), pixels)):
        found = for_onnxruntime(plain, CLIP.num_heads, device, names)  # type: ignore[arg-type]
        session = ort.InferenceSession(found, providers=["CPUExecutionProvider"])
        features.append(session.run(None, {"pixel_values": given})[0])
    assert features[0].dtype == features[1].dtype == np.float16
    error = np.abs(features[0].astype(np.float32) - features[1]).max()
    assert error <= 4e-3 * np.abs(features[0]).max()


def test_bfloat16_keeps_its_type_inside() -> None:
    """A CPU session cannot run it; the graph is looked at."""
    model = onnx.load_from_string(for_onnxruntime(tower("bfloat16"), CLIP.num_heads, "cuda", ["pixel_values"]))
    onnx.checker.check_model(model)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    casts = [node for node in model.graph.node if "pixel_values" in node.input]
    assert [node.op_type for node in casts] == ["Cast"] and casts[0].attribute[0].i == onnx.TensorProto.BFLOAT16
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


def test_a_graph_with_nothing_to_change_is_returned() -> None:
    plain = tower("bfloat16")
    assert for_onnxruntime(plain, CLIP.num_heads, "cpu") is plain
