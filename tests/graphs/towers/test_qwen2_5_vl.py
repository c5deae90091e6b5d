"""The vision tower of Qwen2.5-VL: against transformers in ONNX Runtime, its parameters, its operators, TensorRT-RTX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from sts_export.graphs.configs import Dtype
from sts_export.graphs.model import parameters
from sts_export.graphs.towers.qwen2_5_vl import qwen_encoder
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig, qwen_encoder_contract
from sts_export.media.qwen_windows import encoder_indices

Array = NDArray[Any]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
SIZES = ((4, 4), (8, 8), (16, 24), (10, 26), (2, 60), (60, 2), (30, 30))  # in patches; windows are 8 x 8
CONFIG = QwenVisionConfig(
    patch_size=4,
    temporal_patch_size=2,
    merge_size=2,
    window_patches=8,
    hidden_size=64,
    intermediate_size=88,
    num_heads=4,
    num_layers=4,
    full_attention_layers=(1, 3),
    out_hidden_size=48,
    activation="silu",
    max_grid_side=64,
)
CONFIGS = {
    "mixed": CONFIG,
    "all_windows": dataclasses.replace(CONFIG, full_attention_layers=()),
    "all_full": dataclasses.replace(CONFIG, full_attention_layers=(0, 1, 2, 3)),
    # The head and patch of the real towers (80 channels, 14 pixels), another window and activation.
    "real_heads": dataclasses.replace(
        CONFIG,
        patch_size=14,
        hidden_size=160,
        num_heads=2,
        num_layers=3,
        full_attention_layers=(1,),
        window_patches=4,
        activation="gelu_pytorch_tanh",
    ),
    "big_tokens": dataclasses.replace(CONFIG, merge_size=1, window_patches=3, temporal_patch_size=1, num_channels=1),
}


def tower(config: QwenVisionConfig) -> Qwen2_5_VisionTransformerPretrainedModel:
    """transformers' tower with random weights that make every part of it count."""
    model = Qwen2_5_VisionTransformerPretrainedModel(
        Qwen2_5_VLVisionConfig(
            depth=config.num_layers,
            hidden_size=config.hidden_size,
            hidden_act=config.activation,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            in_channels=config.num_channels,
            patch_size=config.patch_size,
            temporal_patch_size=config.temporal_patch_size,
            spatial_merge_size=config.merge_size,
            window_size=config.window_patches * config.patch_size,
            out_hidden_size=config.out_hidden_size,
            fullatt_block_indexes=list(config.full_attention_layers),
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.2 if parameter.dim() == 1 else 1.5 / parameter[0].numel() ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name or "ln_q" in name))
    return model


def bound(config: QwenVisionConfig, dtype: Dtype, weights: dict[str, torch.Tensor]) -> ir.Model:
    """The graph with a tower's weights."""
    model = qwen_encoder(config, dtype, prefix="visual")
    for parameter in parameters(model):
        data = weights[parameter.name.removeprefix("visual.")].numpy().astype(parameter.dtype.numpy())
        parameter.const_value = ir.tensor(data, parameter.dtype, name=parameter.name)
    return model


def session(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def indices(config: QwenVisionConfig, height: int, width: int) -> dict[str, Array]:
    return dict(vars(encoder_indices(height, width, merge=config.merge_size, window_patches=config.window_patches)))


def run(encoder: ort.InferenceSession, pixels: Array, rest: dict[str, Array]) -> Array:
    """visual_features [tokens, out_width]; a graph without window layers has no use for their inputs, but takes them."""
    (features,) = encoder.run(["visual_features"], {"pixel_values": pixels, **rest})
    assert features.shape[0] == 1
    return np.asarray(features[0])


def relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


@dataclasses.dataclass(frozen=True)
class Case:
    """One tower twice: transformers' and ours, in float32."""

    config: QwenVisionConfig
    torch: Qwen2_5_VisionTransformerPretrainedModel
    onnx: ort.InferenceSession

    def pixels(self, height: int, width: int) -> Array:
        shape = (height * width, self.config.patch_values)
        return np.random.default_rng(height * 1000 + width).standard_normal(shape, dtype=np.float32)

    def expected(self, pixels: Array, height: int, width: int) -> Array:
        with torch.no_grad():
            output = self.torch(torch.from_numpy(pixels), grid_thw=torch.tensor([[1, height, width]]))
        return np.asarray(output.pooler_output.numpy())


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request: pytest.FixtureRequest) -> Case:
    config = CONFIGS[request.param]
    model = tower(config)
    return Case(config, model, session(bound(config, "float32", model.state_dict())))


@pytest.fixture(scope="module")
def mixed() -> Case:
    model = tower(CONFIG)
    return Case(CONFIG, model, session(bound(CONFIG, "float32", model.state_dict())))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_same_as_transformers(case: Case, height: int, width: int) -> None:
    pixels = case.pixels(height, width)
    found = run(case.onnx, pixels, indices(case.config, height, width))
    assert found.shape == (height * width // case.config.merge_size**2, case.config.out_hidden_size)
    assert relative_error(found, case.expected(pixels, height, width)) < 1e-5


def test_the_comparison_notices(mixed: Case) -> None:
    """Wrong positions, windows or padding each move the features by far more than the tolerance above."""
    height, width = 10, 26
    pixels, right = mixed.pixels(height, width), indices(CONFIG, height, width)
    expected = mixed.expected(pixels, height, width)
    windows = encoder_indices(height, width, merge=2, window_patches=4)  # of another size, padded to this one
    index, mask = (np.pad(item, ((0, 0), (0, 48))) for item in (windows.window_index, windows.window_mask))
    for wrong in (
        {"grid_position_ids": right["grid_position_ids"][:, ::-1].copy()},
        {"grid_position_ids": np.zeros_like(right["grid_position_ids"])},
        {"window_mask": np.ones_like(right["window_mask"])},
        {
            "window_index": index,
            "window_mask": mask,
            "window_slot": windows.window_slot // 16 * 64 + windows.window_slot % 16,
        },
    ):
        assert relative_error(run(mixed.onnx, pixels, {**right, **wrong}), expected) > 1e-2, list(wrong)


def test_any_patch_does_as_padding(mixed: Case) -> None:
    height, width = 10, 26
    pixels, right = mixed.pixels(height, width), indices(CONFIG, height, width)
    other = np.where(right["window_mask"], right["window_index"], height * width - 1)
    expected = run(mixed.onnx, pixels, right)
    np.testing.assert_allclose(run(mixed.onnx, pixels, {**right, "window_index": other}), expected, rtol=0, atol=1e-6)


def test_features_come_in_raster_order() -> None:
    """From a picture on: where every merged token is its own window, a token sees its own pixels and no others."""
    config = dataclasses.replace(CONFIG, patch_size=14, window_patches=2, full_attention_layers=(), num_layers=2)
    encoder = session(bound(config, "float32", tower(config).state_dict()))
    processor = Qwen2VLImageProcessorPil()
    rows, columns, side = 4, 6, 28

    def features(image: Array) -> Array:
        inputs = processor(Image.fromarray(image), return_tensors="np")
        assert inputs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]  # not resized
        return run(encoder, inputs["pixel_values"].astype(np.float32), indices(config, 2 * rows, 2 * columns))

    image = np.random.default_rng(0).integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8)
    before = features(image)
    for row, column in ((0, 0), (0, 5), (1, 2), (3, 4)):
        changed = image.copy()
        block = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        changed[block] = 255 - changed[block]
        moved = np.abs(features(changed) - before).max(axis=1) > 1e-3
        assert np.flatnonzero(moved).tolist() == [row * columns + column]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_float16(name: str) -> None:
    config, (height, width) = CONFIGS[name], (10, 26)
    model = tower(config)
    reference = Case(config, model, session(bound(config, "float16", model.state_dict())))
    pixels = reference.pixels(height, width)
    found = run(reference.onnx, pixels.astype(np.float16), indices(config, height, width))
    assert found.dtype == np.float16
    assert relative_error(found, reference.expected(pixels, height, width)) < 5e-3


def test_heads_that_two_axes_cannot_share() -> None:
    with pytest.raises(ValueError, match="heads of 18 channels"):
        qwen_encoder(dataclasses.replace(CONFIG, hidden_size=72), "float32", prefix="visual")


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_the_checkpoints(case: Case, dtype: Dtype) -> None:
    model = qwen_encoder(case.config, dtype, prefix="visual")
    found = {item.name: tuple(int(size) for size in item.shape) for item in parameters(model)}
    assert found == {f"visual.{name}": tuple(tensor.shape) for name, tensor in case.torch.state_dict().items()}
    assert {item.dtype.name for item in parameters(model)} == {"FLOAT" if dtype == "float32" else dtype.upper()}
    # Nothing else is stored but the rotary tables and small constants.
    rest = {name: item.const_value for name, item in model.graph.initializers.items() if name not in found}
    assert {name for name, item in rest.items() if item.size > 1} == {"rotary_cos", "rotary_sin"}
    assert {rest[name].dtype for name in ("rotary_cos", "rotary_sin")} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("dtype", DTYPES)
def test_graph(case: Case, dtype: Dtype) -> None:
    """Valid, exactly its contract, standard operators, one copy of every weight."""
    config = case.config
    proto = ir.to_proto(bound(config, dtype, case.torch.state_dict()))
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)

    contract = qwen_encoder_contract(config, dtype)
    model = ir.from_proto(proto)
    for values, specs in ((model.graph.inputs, contract.inputs), (model.graph.outputs, contract.outputs)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        assert [ir.Shape(spec.shape) for spec in specs] == [value.shape for value in values]
    assert {item.domain: item.version for item in proto.opset_import} == {"": 24}
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Attention") == config.num_layers
    assert kinds.count("Gemm") == 5 * config.num_layers + 3
    masked = [len(node.input) > 3 for node in proto.graph.node if node.op_type == "Attention"]
    assert masked == [layer not in config.full_attention_layers for layer in range(config.num_layers)]

    read = {name for node in proto.graph.node for name in node.input}
    made = {name for node in proto.graph.node for name in node.output}
    assert made <= read | {"visual_features"}
    unused = {value.name for value in proto.graph.input} - read
    all_full = len(config.full_attention_layers) == config.num_layers
    assert unused == ({"window_index", "window_mask", "window_slot"} if all_full else set())
    weights = {item.name for item in proto.graph.initializer if len(item.dims) > 1}
    touched = {node.op_type for node in proto.graph.node if set(node.input) & weights}
    assert touched == {"Gemm", "Gather", "Reshape"}  # rotary tables are gathered, the patch kernel is seen as a matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mixed", "all_windows", "real_heads"])
def test_tensorrt_rtx_parses_and_builds(name: str, dtype: Dtype, tmp_path: Path) -> None:
    """Nothing is run: that takes a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    from tests.support.tensorrt_rtx import build, parse

    config = CONFIGS[name]
    file = tmp_path / "vision_encoder.onnx"
    ir.save(bound(config, dtype, tower(config).state_dict()), file)
    parsed = parse(file, decomposable=dtype == "float32")
    contract = qwen_encoder_contract(config, dtype)
    assert [tensor.name for tensor in parsed.inputs] == [spec.name for spec in contract.inputs]
    assert [tensor.name for tensor in parsed.outputs] == ["visual_features"]
    for tensor in parsed.inputs:
        assert parsed.reachable_outputs(tensor.name) == {"visual_features"}, tensor.name
    kinds = parsed.count()
    assert kinds["ATTENTION_INPUT"] == kinds["ATTENTION_OUTPUT"] == config.num_layers
    assert kinds["ROTARY_EMBEDDING"] == 2 * config.num_layers
    assert not any(kind.startswith("PLUGIN") for kind in kinds)
    is_window = [layer not in config.full_attention_layers for layer in range(config.num_layers)]
    assert parsed.masked("window_mask") == is_window

    # From one merged token to a square image of 64 x 64 patches; strips have more windows than squares.
    windows = (64 // config.window_patches) ** 2
    engine = build(parsed, [{"patches": (4, 1024, 4096), "windows": (1, windows // 4, 2 * windows)}])
    assert len(engine) > 1000
