"""Towers as objects: what a tower says of sizes, against the image processors of transformers and against ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil, Qwen2VLImageProcessorPil

from sts_export.errors import CheckpointError, ImageError
from sts_export.families.qwen2_5_vl import max_image_tokens
from sts_export.families.towers import VISION_FORM, open_tower
from sts_export.families.towers.clip import ClipTower, tiled_pictures
from sts_export.families.towers.protocol import FEATURES, Pictures, Tower
from sts_export.families.towers.qwen2_5_vl import QwenTower
from sts_export.graphs.configs import VisionConfig
from sts_export.graphs.contracts import GraphContract, TensorSpec
from sts_export.graphs.towers.clip_contract import ClipVisionConfig
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.json_records import RecordError, decode, encode
from sts_export.media.processor import ImageProcessor
from tests.graphs.onnx_models import bind, random_weights, session

CROP = 28
CLIP = ClipVisionConfig(CROP, 14, 16, 32, 2, 1, 1e-5, "quick_gelu")
QWEN = QwenVisionConfig(14, 2, 2, 4, 16, 24, 2, 2, (1,), 32, "silu", max_grid_side=200)
TILINGS = ((CROP, 2 * CROP), (2 * CROP, CROP), (2 * CROP, 2 * CROP), (3 * CROP, CROP), (CROP, 3 * CROP))
TOKENS = 30
TOKEN = 28 * 28  # pixels
CROPS = {"size": {"shortest_edge": CROP}, "crop_size": {"height": CROP, "width": CROP}}
# A tower, and the transformers processor of a model that has it.
CASES: dict[str, tuple[Tower, Any]] = {
    "clip": (ClipTower(CLIP, Pictures(CLIP.num_patches)), CLIPImageProcessorPil(**CROPS)),
    "clip-tiles": (
        ClipTower(CLIP, tiled_pictures(CLIP, TILINGS)),
        LlavaNextImageProcessorPil(**CROPS, image_grid_pinpoints=[list(pair) for pair in TILINGS]),
    ),
    "qwen2_5_vl": (
        QwenTower(QWEN, Pictures(max_image_tokens(TOKEN, TOKENS * TOKEN, 28))),
        Qwen2VLImageProcessorPil(size={"shortest_edge": TOKEN, "longest_edge": TOKENS * TOKEN}),
    ),
}
NAMES = list(CASES)
sides = st.integers(1, 1500)


def sizes_of(specs: tuple[TensorSpec, ...], arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Symbolic dimensions of the arrays; the others are as the contract says."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for want, have in zip(spec.shape, arrays[spec.name].shape, strict=True):
            assert have == (sizes.setdefault(want, have) if isinstance(want, str) else want), spec.name
    return sizes


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(height=sides, width=sides)
def test_the_profile_holds_every_picture(name: str, height: int, width: int) -> None:
    """Whatever picture the processor takes, unless it is refused."""
    tower, processor = CASES[name]
    images = tower.images(ImageProcessor(processor, Path("source")))
    try:
        image = images.prepare(Image.new("RGB", (width, height)))
    except ImageError:
        assert max(height, width) > 200 * min(height, width)
        return
    profile = tower.profile()
    found = sizes_of(tower.contract("float32").inputs, image.encoder_inputs)
    assert found.keys() == profile.keys()
    for symbol, size in found.items():
        least, best, largest = profile[symbol]
        assert least <= best <= largest and least <= size <= largest, symbol
    assert image.crops <= tower.max_crops and image.crop_rows <= tower.rows_per_crop
    assert image.num_tokens <= tower.pictures.max_tokens and image.num_newlines <= tower.pictures.max_newlines
    if tower.is_fixed_size:
        assert image.num_tokens == tower.pictures.max_tokens


@pytest.mark.parametrize("name", NAMES)
def test_some_picture_is_the_largest(name: str) -> None:
    tower, processor = CASES[name]
    images = tower.images(ImageProcessor(processor, Path("source")))
    # A strip keeps one token across, and so may have more tokens than its pixels hold.
    image = images.prepare(Image.new("RGB", (28, 200 * 28) if name == "qwen2_5_vl" else (2 * CROP, 2 * CROP)))
    assert (image.crops, image.num_tokens) == (tower.max_crops, tower.pictures.max_tokens)


@pytest.fixture(scope="module")
def sessions() -> dict[str, tuple[GraphContract, ort.InferenceSession]]:
    """The encoder with all that it gives, and random weights."""
    made = {}
    for name, (tower, _) in CASES.items():
        model = tower.graph("float32", "v", tower.gives)
        bind(model, random_weights(model))
        made[name] = (tower.contract("float32", tower.gives), session(model))
    return made


@pytest.mark.parametrize("size", [(28, 28), (300, 200), (60, 900)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_derived_sizes_are_onnx_runtimes(
    sessions: dict[str, tuple[GraphContract, ort.InferenceSession]], name: str, size: tuple[int, int]
) -> None:
    (tower, processor), (contract, encoder) = CASES[name], sessions[name]
    feeds = tower.images(ImageProcessor(processor, Path("source"))).prepare(Image.new("RGB", size)).encoder_inputs
    names = [spec.name for spec in contract.outputs]
    assert [output.name for output in encoder.get_outputs()] == names
    outputs = dict(zip(names, encoder.run(names, dict(feeds)), strict=True))
    given_sizes, made_sizes = sizes_of(contract.inputs, feeds), sizes_of(contract.outputs, outputs)
    derived = tower.derived_sizes(given_sizes)
    assert {**given_sizes, **derived} == {**given_sizes, **made_sizes}
    assert not derived.keys() & given_sizes.keys()
    assert outputs["visual_features"].shape[2] == tower.width


@pytest.mark.parametrize("name", NAMES)
def test_needs_are_outputs(name: str) -> None:
    tower = CASES[name][0]
    others = tower.gives - {FEATURES}
    assert [spec.name for spec in tower.contract("float16").outputs] == ["visual_features"]
    assert {spec.name for spec in tower.contract("float16", tower.gives).outputs} == {"visual_features"} | others
    assert tower.contract("float16", frozenset({FEATURES})) == tower.contract("float16")
    for make in (lambda: tower.contract("float16", {"keys"}), lambda: tower.graph("float16", "v", {"keys"})):
        with pytest.raises(ValueError, match="does not give keys"):
            make()


def test_only_clip_has_a_cls_token() -> None:
    for need in ("cls_attention", "early_cls_attention", "cls_features"):
        assert {tower.vision.kind for tower, *_ in CASES.values() if need in tower.gives} == {"clip"}


def test_rows_of_attention_take_a_layer_that_attends_to_the_whole_picture() -> None:
    others = {"received_attention", "early_received_attention", "middle_received_attention", "mean_keys"}
    for tower, _ in CASES.values():
        assert others <= tower.gives
    windows = QwenTower(replace(QWEN, full_attention_layers=()), Pictures(100))
    assert windows.gives == {FEATURES}
    with pytest.raises(ValueError, match="does not give mean_keys"):
        windows.contract("float16", {"mean_keys"})


@pytest.mark.parametrize("name", NAMES)
def test_memory_of_needs(name: str) -> None:
    """Little is held for rows of attention, and nothing without them."""
    tower = CASES[name][0]
    assert tower.scratch_bytes(frozenset()) == tower.scratch_bytes({FEATURES}) == 0
    assert 0 < tower.scratch_bytes({"mean_keys"}) < tower.scratch_bytes({"received_attention"})
    rows, attended = tower.attention_rows
    turned = tower.scratch_bytes({"mean_keys"})
    assert tower.scratch_bytes({"received_attention"}) == turned + 2 * tower.vision.num_heads * rows * attended * 4


@dataclass(frozen=True)
class Written:
    """A record that has dimensions of any tower."""

    vision: VisionConfig = field(metadata=VISION_FORM.metadata)


@pytest.mark.parametrize("name", NAMES)
def test_dimensions_survive_a_manifest(name: str) -> None:
    tower = CASES[name][0]
    vision = decode(Written, json.loads(json.dumps(encode(Written(tower.vision))))).vision
    assert vision == tower.vision and type(vision) is type(tower.vision)
    assert open_tower(vision, tower.pictures) == tower


@pytest.mark.parametrize("kind", ["", "siglip", None, ["clip"]], ids=repr)
def test_a_tower_that_nobody_knows(kind: Any) -> None:
    with pytest.raises(RecordError, match=r"^\$\.vision"):
        decode(Written, {"vision": {**asdict(CLIP), "kind": kind}})


@pytest.mark.parametrize("name", NAMES)
def test_every_dimension_has_limits(name: str) -> None:
    """None of them may be 0 or enormous: graphs would be nonsense or take forever to build."""
    tower = CASES[name][0]
    tower.check()
    numbers = [item.name for item in fields(tower.vision) if isinstance(getattr(tower.vision, item.name), (int, float))]
    assert len(numbers) >= 8
    for number in numbers:
        for value in (-1, 1 << 40):
            with pytest.raises(ValueError, match=r"between|divide|number of tokens"):
                type(tower)(replace(tower.vision, **{number: value}), tower.pictures).check()


@pytest.mark.parametrize(
    ("tower", "text"),
    [
        (ClipTower(replace(CLIP, num_heads=3), Pictures(4)), "heads do not divide"),
        (ClipTower(replace(CLIP, patch_size=29), Pictures(4)), "patch_size 29"),
        (ClipTower(CLIP, Pictures(4, max_newlines=2)), "newlines without tiles"),
        (ClipTower(CLIP, replace(tiled_pictures(CLIP, TILINGS), max_tokens=19)), "another number of tokens"),
        (ClipTower(CLIP, replace(tiled_pictures(CLIP, TILINGS), max_newlines=5)), "another number of tokens"),
        (ClipTower(CLIP, Pictures(8, 2, ((CROP, CROP - 1),))), "a side of image_grid_pinpoints, 27"),
        (QwenTower(replace(QWEN, full_attention_layers=(2,)), Pictures(100)), "names layers that are not there"),
        (QwenTower(replace(QWEN, window_patches=3), Pictures(100)), "windows do not divide"),
        (QwenTower(replace(QWEN, num_heads=8), Pictures(100)), "windows do not divide"),  # heads of 2 channels
        (QwenTower(QWEN, Pictures(100, 0, TILINGS)), "tiles of a tower that takes any resolution"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dimensions_that_contradict_each_other(tower: Tower, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tower.check()


def test_sizes_of_public_models() -> None:
    """LLaVA-1.5 and LLaVA-NeXT: CLIP ViT-L/14 at 336 pixels; Qwen2.5-VL: 7B at 1280 tokens."""
    vision = ClipVisionConfig(336, 14, 1024, 4096, 16, 23, 1e-5, "quick_gelu")
    plain = ClipTower(vision, Pictures(576))
    assert (plain.width, plain.num_layers, plain.max_crops, plain.rows_per_crop) == (1024, 23, 1, 576)
    assert plain.attention_rows == (577, 577) and plain.is_fixed_size
    tiled = ClipTower(vision, tiled_pictures(vision, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))))
    assert tiled.pictures == Pictures(2880, 72, tiled.pictures.tile_resolutions)
    assert tiled.attention_rows == (5 * 577, 577) and not tiled.is_fixed_size
    config = QwenVisionConfig(14, 2, 2, 8, 1280, 3420, 16, 32, (7, 15, 23, 31), 3584, "silu", 1432)
    tower = QwenTower(config, Pictures(1280))
    assert (tower.width, tower.num_layers, tower.max_crops, tower.rows_per_crop) == (3584, 32, 1, 1280)
    assert tower.attention_rows == (5120, 5120) and not tower.is_fixed_size
    assert QwenTower(replace(config, full_attention_layers=()), Pictures(1280)).attention_rows == (5120, 64)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("clip", CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})),
        ("clip-tiles", LlavaNextImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})),
        ("qwen2_5_vl", Qwen2VLImageProcessorPil(patch_size=16)),
        ("qwen2_5_vl", Qwen2VLImageProcessorPil(merge_size=4)),
        ("qwen2_5_vl", Qwen2VLImageProcessorPil(temporal_patch_size=1)),
    ],
)
def test_a_processor_of_another_tower(name: str, other: Any, tmp_path: Path) -> None:
    tower, own = CASES[name]
    tower.check_processor(own, tmp_path)
    with pytest.raises(CheckpointError, match="use the processor files of this model") as caught:
        tower.check_processor(other, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
