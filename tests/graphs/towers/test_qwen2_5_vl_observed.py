"""What Qwen2.5-VL's tower gives beside features, against attention and keys of transformers' blocks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    apply_rotary_pos_emb_vision,
)

from sts_export.graphs.configs import Dtype
from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract
from tests.graphs.onnx_models import bind, operators, serialized, session
from tests.graphs.towers.test_qwen2_5_vl import CONFIG, indices, relative_error, tower

Array = NDArray[Any]
ALL = ("received_attention", "early_received_attention", "middle_received_attention", "mean_keys")
SIZES = ((2, 2), (16, 24), (10, 26), (2, 60))  # in patches; windows are 8 x 8
# name -> tower; last, first and middle layer with full attention by hand, counted from 1
TOWERS = {
    "two of four": (CONFIG, 4, 2, 2),
    "three of six": (dataclasses.replace(CONFIG, num_layers=6, full_attention_layers=(0, 3, 4)), 5, 1, 4),
    # Layers 2 and 4 are as near to 3, half of 6.
    "a tie": (dataclasses.replace(CONFIG, num_layers=6, full_attention_layers=(5, 3, 1)), 6, 2, 2),
    "one": (dataclasses.replace(CONFIG, num_layers=3, full_attention_layers=(1,), hidden_size=160, num_heads=2), 2, 2, 2),
    "no merging": (dataclasses.replace(CONFIG, merge_size=1, full_attention_layers=(2,)), 3, 3, 3),
}


@dataclass(frozen=True)
class Case:
    """One tower twice: transformers' and ours."""

    config: QwenVisionConfig
    last: int
    early: int
    middle: int
    torch: Qwen2_5_VisionTransformerPretrainedModel

    def bound(self, dtype: Dtype, needs: frozenset[str], max_patches: int = 4096) -> ir.Model:
        model = qwen_encoder(self.config, dtype, prefix="v", needs=needs, max_patches=max_patches)
        bind(model, {f"v.{name}": item.numpy() for name, item in self.torch.state_dict().items()})
        return model

    def pixels(self, height: int, width: int) -> Array:
        shape = (height * width, self.config.patch_values)
        return np.random.default_rng(height * 1000 + width).standard_normal(shape, dtype=np.float32)

    def expected(self, pixels: Array, height: int, width: int) -> dict[str, Array]:
        """From all probabilities of a block, computed from what its attention is given; tokens in raster order."""
        received: dict[int, torch.Tensor] = {}
        keys: dict[int, torch.Tensor] = {}

        def listen(number: int) -> Any:
            def hook(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hidden = args[0] if args else kwargs["hidden_states"]
                query, key, _ = attention.qkv(hidden).reshape(len(hidden), 3, self.config.num_heads, -1).unbind(1)
                keys[number] = key.mean(dim=1)
                query, key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
                scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
                received[number] = scores.softmax(dim=-1).mean(dim=(0, 1))

            return hook

        hooks = [
            block.attn.register_forward_pre_hook(listen(number), with_kwargs=True)
            for number, block in enumerate(self.torch.blocks, start=1)
        ]
        with torch.no_grad():
            seen = self.torch(torch.from_numpy(pixels), grid_thw=torch.tensor([[1, height, width]]))
        for hook in hooks:
            hook.remove()
        # transformers' blocks see tokens window by window.
        place = torch.argsort(torch.from_numpy(self._window_order(height, width)))

        def of_tokens(by_patch: torch.Tensor) -> Array:
            merged = by_patch.reshape(-1, self.config.merge_size**2, *by_patch.shape[1:]).mean(dim=1)[place]
            return np.asarray(merged.unsqueeze(0).numpy())

        return {
            "visual_features": np.asarray(seen.pooler_output.unsqueeze(0).numpy()),
            "received_attention": of_tokens(received[self.last]),
            "early_received_attention": of_tokens(received[self.early]),
            "middle_received_attention": of_tokens(received[self.middle]),
            "mean_keys": of_tokens(keys[self.last]),
        }

    def _window_order(self, height: int, width: int) -> Array:
        """Raster number of each token, in the order of windows."""
        side = self.config.window_patches // self.config.merge_size
        rows, columns = height // self.config.merge_size, width // self.config.merge_size
        row, column = np.divmod(np.arange(rows * columns), columns)
        return np.lexsort((column, row, column // side, row // side))

    def feeds(self, height: int, width: int, dtype: Dtype = "float32") -> dict[str, Array]:
        return {"pixel_values": self.pixels(height, width).astype(dtype), **indices(self.config, height, width)}


@pytest.fixture(scope="module", params=list(TOWERS))
def case(request: pytest.FixtureRequest) -> Case:
    config, last, early, middle = TOWERS[request.param]
    return Case(config, last, early, middle, tower(config))


@pytest.fixture(scope="module")
def encoder(case: Case) -> ort.InferenceSession:
    """With all outputs."""
    return session(case.bound("float32", frozenset(ALL)))


def run(encoder: ort.InferenceSession, feeds: dict[str, Array]) -> dict[str, Array]:
    names = [output.name for output in encoder.get_outputs()]
    return dict(zip(names, encoder.run(names, feeds), strict=True))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_all_is_what_transformers_computes(case: Case, encoder: ort.InferenceSession, height: int, width: int) -> None:
    found = run(encoder, case.feeds(height, width))
    expected = case.expected(case.pixels(height, width), height, width)
    assert list(found) == ["visual_features", *ALL]  # in this order
    for name, array in found.items():
        assert array.dtype == np.float32 and array.shape == expected[name].shape, name
        assert relative_error(array, expected[name]) < 1e-5, name
    # Attention that all patches give is 1 each.
    tokens = found["received_attention"].shape[1]
    np.testing.assert_allclose(found["received_attention"].sum() * case.config.merge_size**2, 1, rtol=1e-4)
    assert tokens * case.config.merge_size**2 == height * width


def test_the_comparison_notices(case: Case) -> None:
    """Layers, tokens and their order differ by far more than the tolerance."""
    expected = case.expected(case.pixels(10, 26), 10, 26)
    rows = expected["received_attention"]
    assert rows.std() > 0.1 * rows.mean()
    assert relative_error(rows[:, ::-1], rows) > 0.05
    layers = {"received_attention": case.last, "early_received_attention": case.early, "middle_received_attention": case.middle}
    for name, layer in layers.items():
        for other, other_layer in layers.items():
            assert (relative_error(expected[name], expected[other]) > 0.05) == (layer != other_layer)


@pytest.mark.parametrize("need", ALL)
def test_each_alone(case: Case, need: str) -> None:
    found = run(session(case.bound("float32", frozenset({need}))), case.feeds(10, 26))
    assert list(found) == ["visual_features", need]
    expected = case.expected(case.pixels(10, 26), 10, 26)
    for name, array in found.items():
        assert relative_error(array, expected[name]) < 1e-5, name


def test_the_largest_picture_does_not_matter(case: Case) -> None:
    """It says how many queries a step has, one at last."""
    feeds, expected = case.feeds(10, 26), case.expected(case.pixels(10, 26), 10, 26)
    for most in (260, 16384, 1 << 23):
        found = run(session(case.bound("float32", frozenset(ALL), max_patches=most)), feeds)
        for name, array in found.items():
            assert relative_error(array, expected[name]) < 1e-5, (name, most)


def test_float16(case: Case) -> None:
    found = run(session(case.bound("float16", frozenset(ALL))), case.feeds(10, 26, "float16"))
    expected = case.expected(case.pixels(10, 26), 10, 26)
    for name, array in found.items():
        assert array.dtype == (np.float16 if name == "visual_features" else np.float32)
        assert relative_error(array, expected[name]) < 0.02, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_graph(case: Case, dtype: Dtype) -> None:
    """Valid, exactly its contract, standard operators; the fused attention stays."""
    needs = frozenset(ALL)
    model = case.bound(dtype, needs)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    contract = qwen_encoder_contract(case.config, dtype, needs)
    assert [value.name for value in model.graph.outputs] == [spec.name for spec in contract.outputs]
    assert [value.shape for value in model.graph.outputs] == [ir.Shape(spec.shape) for spec in contract.outputs]
    assert {item.domain: item.version for item in proto.opset_import} == {"": 24}
    kinds, plain = operators(serialized(model)), operators(serialized(case.bound(dtype, frozenset())))
    assert kinds["Loop"] == len({case.last, case.early, case.middle}) and "Loop" not in plain
    assert all(kinds[name] == plain[name] for name in ("Attention", "RotaryEmbedding", "Gemm"))


def test_windows_only() -> None:
    config = dataclasses.replace(CONFIG, full_attention_layers=())
    with pytest.raises(ValueError, match="no layer of the vision tower attends to the whole image"):
        qwen_encoder(config, "float32", prefix="v", needs=frozenset({"mean_keys"}), max_patches=64)
    with pytest.raises(ValueError, match="rows of attention need the patches of the largest picture"):
        qwen_encoder(CONFIG, "float32", prefix="v", needs=frozenset({"received_attention"}))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensorrt_rtx_parses_and_builds(dtype: Dtype, tmp_path: Path) -> None:
    """Heads of 80, as in the real towers.  Nothing is run: that takes a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    from tests.support.tensorrt_rtx import build, describe, parse

    config = dataclasses.replace(CONFIG, patch_size=14, hidden_size=160, num_heads=2, num_layers=4, max_grid_side=128)
    config = dataclasses.replace(config, full_attention_layers=(0, 1, 3))
    needs = frozenset(ALL)
    file = tmp_path / "vision_encoder.onnx"
    ir.save(Case(config, 4, 1, 2, tower(config)).bound(dtype, needs, max_patches=16384), file)
    parsed = parse(file, decomposable=dtype == "float32")
    contract = qwen_encoder_contract(config, dtype, needs)
    assert [(tensor.name, describe(tensor).dtype) for tensor in parsed.outputs] == [
        (spec.name, spec.dtype) for spec in contract.outputs
    ]
    assert parsed.reachable_outputs("pixel_values") == {spec.name for spec in contract.outputs}
    assert parsed.count()["ATTENTION_INPUT"] == config.num_layers
    assert len(build(parsed, [{"patches": (4, 4096, 16384), "windows": (1, 128, 300)}])) > 1000
