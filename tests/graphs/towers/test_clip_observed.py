"""What CLIP's tower gives beside features, against transformers' attention and keys."""

from __future__ import annotations

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
from transformers import CLIPVisionConfig, CLIPVisionModel

from sts_export.graphs.configs import Dtype
from sts_export.graphs.towers.clip import clip_encoder
from sts_export.graphs.towers.clip_contract import ClipVisionConfig, clip_encoder_contract
from tests.graphs.onnx_models import bind, operators, serialized, session

Array = NDArray[Any]
ALL = (
    "cls_attention",
    "early_cls_attention",
    "received_attention",
    "early_received_attention",
    "middle_received_attention",
    "mean_keys",
    "cls_features",
)
# name -> tower, early and middle layer by hand (of 1: 1/4 and 3/8; of 6: 1.5 and 2.25; of 4: 1 and 1.5; of 3: 3/4 and 9/8)
TOWERS = {
    "one layer": (ClipVisionConfig(28, 14, 16, 32, 2, 1, 1e-5, "quick_gelu"), 1, 1),
    "six layers": (ClipVisionConfig(30, 6, 24, 32, 3, 6, 1e-5, "quick_gelu"), 2, 2),
    "four layers": (ClipVisionConfig(40, 8, 32, 48, 4, 4, 1e-5, "gelu"), 1, 2),
    "one head": (ClipVisionConfig(14, 14, 16, 32, 1, 3, 1e-5, "quick_gelu"), 1, 1),
}


@dataclass(frozen=True)
class Case:
    """One tower twice: transformers', with a layer after the feature layer, and its sizes."""

    config: ClipVisionConfig
    early: int
    middle: int
    torch: CLIPVisionModel

    def bound(self, dtype: Dtype, needs: frozenset[str], max_crops: int = 1) -> ir.Model:
        model = clip_encoder(self.config, dtype, prefix="v", needs=needs, max_crops=max_crops)
        weights = {f"v.{name.removeprefix('vision_model.')}": item.numpy() for name, item in self.torch.state_dict().items()}
        bind(model, weights)
        return model

    def pixels(self, crops: int) -> Array:
        size = self.config.image_size
        return np.random.default_rng(crops).standard_normal((crops, 3, size, size), np.float32)

    def expected(self, pixels: Array) -> dict[str, Array]:
        """From all probabilities and all keys, [crops, heads, tokens, tokens] and [crops, tokens, width]."""
        keys: list[torch.Tensor] = []
        layer = dict(self.torch.named_modules())
        name = next(name for name in layer if name.endswith(f"layers.{self.config.feature_layers - 1}.self_attn.k_proj"))
        hook = layer[name].register_forward_hook(lambda _module, _args, output: keys.append(output))
        with torch.no_grad():
            seen = self.torch(torch.from_numpy(pixels), output_attentions=True, output_hidden_states=True)
        hook.remove()
        rows = {number: item.numpy().mean(axis=1) for number, item in enumerate(seen.attentions, start=1)}
        feature, heads = self.config.feature_layers, self.config.num_heads
        split = keys[0].numpy().reshape(len(pixels), -1, heads, self.config.hidden_size // heads)
        return {
            "visual_features": seen.hidden_states[feature][:, 1:].numpy(),
            "cls_attention": rows[feature][:, 0, 1:],
            "early_cls_attention": rows[self.early][:, 0, 1:],
            "received_attention": rows[feature][:, 1:, 1:].mean(axis=1),
            "early_received_attention": rows[self.early][:, 1:, 1:].mean(axis=1),
            "middle_received_attention": rows[self.middle][:, 1:, 1:].mean(axis=1),
            "mean_keys": split.mean(axis=2)[:, 1:],
            "cls_features": seen.hidden_states[feature][:, 0].numpy(),
        }


def tower(config: ClipVisionConfig) -> CLIPVisionModel:
    """transformers' tower with random weights that make rows of attention differ much."""
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.feature_layers + 1,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act=config.activation,
            layer_norm_eps=config.layer_norm_eps,
            attn_implementation="eager",
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.2 if parameter.dim() == 1 else 2.0 / parameter[0].numel() ** 0.5
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + is_norm)
    return model


@pytest.fixture(scope="module", params=list(TOWERS))
def case(request: pytest.FixtureRequest) -> Case:
    config, early, middle = TOWERS[request.param]
    return Case(config, early, middle, tower(config))


def run(encoder: ort.InferenceSession, pixels: Array) -> dict[str, Array]:
    names = [output.name for output in encoder.get_outputs()]
    return dict(zip(names, encoder.run(names, {"pixel_values": pixels}), strict=True))


def relative_error(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


@pytest.mark.parametrize("crops", [1, 5])
def test_all_is_what_transformers_computes(case: Case, crops: int) -> None:
    pixels = case.pixels(crops)
    found, expected = run(session(case.bound("float32", frozenset(ALL))), pixels), case.expected(pixels)
    assert list(found) == ["visual_features", *ALL]  # in this order
    for name, array in found.items():
        assert array.dtype == np.float32
        assert relative_error(array, expected[name]) < 1e-5, name


def test_rows_of_attention_differ(case: Case) -> None:
    """Otherwise the comparison would say little: layers and rows, and CLS as a query counts in none."""
    expected = case.expected(case.pixels(2))
    rows = [name for name in ALL if name.endswith("attention")]
    if case.config.num_patches > 1:
        assert all(expected[name].std() > 0.05 * expected[name].mean() for name in rows)
    if case.early < case.middle:
        assert len({expected[name].tobytes() for name in rows}) == len(rows)
    # A part of the attention goes to CLS.
    assert all((expected[name].sum(axis=1) < 1).all() for name in rows)


@pytest.mark.parametrize("need", ALL)
def test_each_alone(case: Case, need: str) -> None:
    pixels = case.pixels(2)
    found, expected = run(session(case.bound("float32", frozenset({need}))), pixels), case.expected(pixels)
    assert list(found) == ["visual_features", need]
    for name, array in found.items():
        assert relative_error(array, expected[name]) < 1e-5, name


def test_float16(case: Case) -> None:
    pixels = case.pixels(3)
    found, expected = run(session(case.bound("float16", frozenset(ALL))), pixels.astype(np.float16)), case.expected(pixels)
    for name, array in found.items():
        assert array.dtype == (np.float16 if name.endswith("features") else np.float32)
        assert relative_error(array, expected[name]) < 0.02, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_graph(case: Case, dtype: Dtype) -> None:
    """Valid, exactly its contract, standard operators; the fused attention stays."""
    needs = frozenset(ALL)
    model = case.bound(dtype, needs)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    contract = clip_encoder_contract(case.config, dtype, needs)
    assert [value.name for value in model.graph.outputs] == [spec.name for spec in contract.outputs]
    assert [value.shape for value in model.graph.outputs] == [ir.Shape(spec.shape) for spec in contract.outputs]
    assert {item.domain: item.version for item in proto.opset_import} == {"": 24}
    kinds = operators(serialized(model))
    assert kinds["Attention"] == case.config.feature_layers
    assert kinds["Loop"] == len({case.config.feature_layers, case.early, case.middle})
    plain = operators(serialized(case.bound(dtype, frozenset())))
    assert kinds["Gemm"] == plain["Gemm"] and "Loop" not in plain


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensorrt_rtx_parses_and_builds(dtype: Dtype, tmp_path: Path) -> None:
    """Nothing is run: that takes a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    from tests.support.tensorrt_rtx import build, describe, parse

    # Heads of 64, as in CLIP-L, and of 577 rows in steps.
    config = ClipVisionConfig(336, 14, 128, 64, 2, 4, 1e-5, "quick_gelu")
    needs = frozenset(ALL)
    file = tmp_path / "vision_encoder.onnx"
    ir.save(Case(config, 1, 2, tower(config)).bound(dtype, needs, max_crops=50), file)
    parsed = parse(file, decomposable=dtype == "float32")
    contract = clip_encoder_contract(config, dtype, needs)
    assert [(tensor.name, describe(tensor).dtype) for tensor in parsed.outputs] == [
        (spec.name, spec.dtype) for spec in contract.outputs
    ]
    assert parsed.reachable_outputs("pixel_values") == {spec.name for spec in contract.outputs}
    assert parsed.count()["ATTENTION_INPUT"] == config.feature_layers
    assert len(build(parsed, [{"crops": (1, 5, 50)}])) > 1000
