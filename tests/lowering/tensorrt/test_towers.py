"""Towers with rows of attention in the operators of an old TensorRT: the same numbers on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sts_export.graphs.configs import Dtype
from sts_export.graphs.towers.clip import clip_encoder
from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder
from sts_export.lowering.tensorrt import lower
from tests.graphs.onnx_models import bind, random_weights, serialized
from tests.lowering.tensorrt.test_graph import SUPPORTED
from tests.lowering.test_onnxruntime_attention_towers import ALL, CLIP, OF_QWEN, QWEN, Array, grid_feeds, run_encoder
from tests.support.lowered_graphs import OLD, all_nodes

TOLERANCE = {"float32": 1e-4, "float16": 2e-2}


def case(name: str, dtype: Dtype) -> tuple[ir.Model, dict[str, Array]]:
    rng = np.random.default_rng(0)
    if name == "clip":
        encoder = clip_encoder(CLIP, dtype, prefix="v", needs=ALL, max_crops=3)
        feeds = {"pixel_values": rng.standard_normal((3, 3, 28, 28), np.float32)}
    else:
        encoder = qwen_encoder(QWEN, dtype, prefix="v", needs=OF_QWEN, max_patches=140)
        feeds = grid_feeds(10, 14, rng)
    bind(encoder, random_weights(encoder))
    return encoder, {key: array.astype(dtype) if array.dtype == np.float32 else array for key, array in feeds.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["clip", "qwen2_5_vl"])
def test_same_numbers(name: str, dtype: Dtype) -> None:
    encoder, feeds = case(name, dtype)
    graph = serialized(encoder)
    old = lower(graph, OLD, plugins=False).graph
    proto = onnx.load_from_string(old)
    kinds = {node.op_type for node in all_nodes(proto.graph.node)}
    assert "Loop" in kinds and "Attention" not in kinds and kinds <= SUPPORTED.keys()
    wanted, found = run_encoder(graph, feeds), run_encoder(old, feeds)
    assert list(wanted) == list(found)
    for key, array in wanted.items():
        error = np.abs(found[key].astype(np.float64) - array).max()
        assert found[key].dtype == array.dtype and error <= TOLERANCE[dtype] * np.abs(array).max(), key
