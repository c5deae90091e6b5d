"""Vision towers with ONNX Runtime's own attention operator against the same graphs as they lie in the bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sts_export.graphs.configs import Dtype
from sts_export.graphs.needs import CLS_ATTENTION, CLS_FEATURES
from sts_export.graphs.towers.clip import clip_encoder
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.observed import OBSERVED
from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.lowering.onnxruntime_attention import CONTRIB
from sts_export.lowering.onnxruntime_graph import for_onnxruntime
from tests.graphs.onnx_models import bind, operators, random_weights, serialized

Array = NDArray[Any]
WIDTH = 32
# Of each output, relative to its largest magnitude.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3}
CLS = frozenset({CLS_ATTENTION})
ALL = frozenset({*OBSERVED, CLS_FEATURES})
OF_QWEN = frozenset(name for name in OBSERVED if "cls" not in name)
CLIP = ClipVisionConfig(28, 14, 16, 32, 2, 3, 1e-5, "quick_gelu")
QWEN = QwenVisionConfig(14, 2, 2, 4, 32, 48, 4, 3, (0, 2), WIDTH, "silu", 64)


def grid_feeds(height: int, width: int, rng: np.random.Generator) -> dict[str, Array]:
    """A picture of height x width patches; all that is wanted of the windows is that both graphs get the same."""
    patches, window = height * width, QWEN.window_patches**2
    windows = -(-patches // window)
    slots = np.arange(windows * window)
    return {
        "pixel_values": rng.standard_normal((patches, QWEN.patch_values), np.float32),
        "grid_position_ids": np.stack(np.divmod(np.arange(patches), width), axis=1),
        "window_index": np.minimum(slots, patches - 1).reshape(windows, window),
        "window_mask": (slots < patches).reshape(windows, window),
        "window_slot": np.arange(patches),
    }


def run_encoder(graph: bytes, feeds: dict[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_encoders_agree(encoder: ir.Model, heads: int, left: int, feeds: dict[str, Array], dtype: Dtype) -> None:
    """Three layers of which ``left`` stay as they are."""
    bind(encoder, random_weights(encoder))
    plain = serialized(encoder)
    fused = for_onnxruntime(plain, heads, "cpu")
    assert operators(plain)["Attention"] == 3
    assert operators(fused).get("Attention", 0) == left
    assert operators(fused)[f"{CONTRIB}::MultiHeadAttention"] == 3 - left
    feeds = {name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in feeds.items()}
    wanted, found = run_encoder(plain, feeds), run_encoder(fused, feeds)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        error = np.abs(found[name].astype(np.float64) - array).max()
        assert np.isfinite(array).all() and error <= TOLERANCE[dtype] * np.abs(array).max(), name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("crops", [1, 5])
@pytest.mark.parametrize("needs", [frozenset(), CLS, ALL], ids=["features", "cls_attention", "all"])
def test_clip_tower(capfd: pytest.CaptureFixture[str], dtype: Dtype, crops: int, needs: frozenset[str]) -> None:
    """Any number of crops; the CLS row is computed from the same queries and keys."""
    encoder = clip_encoder(CLIP, dtype, needs=needs, prefix="v")
    pixels = np.random.default_rng(crops).standard_normal((crops, 3, 28, 28), np.float32)
    assert_encoders_agree(encoder, CLIP.num_heads, 0, {"pixel_values": pixels}, dtype)
    assert capfd.readouterr() == ("", "")  # no warning of ONNX Runtime


def test_clip_tower_of_true_size() -> None:
    """577 rows with heads of 64."""
    config = ClipVisionConfig(336, 14, 128, 64, 2, 3, 1e-5, "quick_gelu")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 336, 336), np.float32)
    encoder = clip_encoder(config, "float32", needs=CLS, prefix="v")
    assert_encoders_agree(encoder, config.num_heads, 0, {"pixel_values": pixels}, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (10, 14)], ids=str)
@pytest.mark.parametrize("needs", [frozenset(), OF_QWEN], ids=["features", "all"])
def test_qwen_tower(capfd: pytest.CaptureFixture[str], dtype: Dtype, grid: tuple[int, int], needs: frozenset[str]) -> None:
    """Full attention is replaced; windows have a mask, and stay."""
    feeds = grid_feeds(*grid, np.random.default_rng(0))
    encoder = qwen_encoder(QWEN, dtype, prefix="v", needs=needs, max_patches=140)
    assert_encoders_agree(encoder, QWEN.num_heads, 1, feeds, dtype)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("needs", "transpositions"), [(frozenset(), 1), (CLS, 4), (ALL, 9)], ids=["features", "cls_attention", "all"]
)
def test_cuda_takes_a_clip_tower_without_transpositions(dtype: Dtype, needs: frozenset[str], transpositions: int) -> None:
    """Projections give heads side by side, and Attention takes them so.  Computed by the CPU's kernels here."""
    encoder = clip_encoder(CLIP, dtype, needs=needs, prefix="v")
    bind(encoder, random_weights(encoder))
    plain = serialized(encoder)
    found = for_onnxruntime(plain, CLIP.num_heads, "cuda")
    before, after = operators(plain), operators(found)
    # One is left, of the patches.  Rows of attention take the split query and key of their layer, and each kind of row turns
    # the key: all of them do in the first layer, which is early and middle here, and in the last.
    assert before["Attention"] == after["Attention"] == 3
    assert after["Transpose"] == transpositions < before["Transpose"]
    pixels = np.random.default_rng(3).standard_normal((2, 3, 28, 28)).astype(dtype)
    wanted, got = (run_encoder(graph, {"pixel_values": pixels}) for graph in (plain, found))
    for name, array in wanted.items():
        error = np.abs(got[name].astype(np.float64) - array).max()
        assert error <= TOLERANCE[dtype] * np.abs(array).max(), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cuda_keeps_the_attention_of_a_qwen_tower(dtype: Dtype) -> None:
    """Its query, key and value are split from one projection."""
    encoder = qwen_encoder(QWEN, dtype, prefix="v")
    bind(encoder, random_weights(encoder))
    content = serialized(encoder)
    before, after = operators(content), operators(for_onnxruntime(content, QWEN.num_heads, "cuda"))
    assert all(before[name] == after[name] for name in ("Attention", "Transpose", "RotaryEmbedding"))
