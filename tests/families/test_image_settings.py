"""Old and new spellings of the image processor's settings: ours is what transformers' processors make of a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from sts_export.checkpoints.checkpoint import image_processor_settings
from sts_export.errors import CheckpointError
from sts_export.families.image_settings import read_image_settings
from sts_export.families.qwen2_5_vl import pixel_limits
from sts_export.families.towers.clip import ClipTower
from sts_export.families.towers.protocol import Pictures
from sts_export.graphs.towers.clip_contract import ClipVisionConfig

GONE: Any = ...
TOKEN = 28 * 28


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([GONE, None, *values])


LIMITS = st.fixed_dictionaries(
    {
        "min_pixels": some(4 * TOKEN, 30 * TOKEN, 0),
        "max_pixels": some(40 * TOKEN, 90 * TOKEN),
        "size": some(
            {"shortest_edge": 9 * TOKEN, "longest_edge": 60 * TOKEN},
            {"longest_edge": 50 * TOKEN},
            {"shortest_edge": 5 * TOKEN},
            {"min_pixels": 3 * TOKEN, "max_pixels": 70 * TOKEN},
        ),
        "do_resize": st.sampled_from([GONE, True]),
    }
).map(lambda values: {name: value for name, value in values.items() if value is not GONE})


@settings(derandomize=True, deadline=None, database=None, max_examples=80)
@given(processor=LIMITS, width=st.integers(20, 700), height=st.integers(20, 700))
@example(processor={"size": {"longest_edge": 50 * TOKEN}}, width=600, height=600)
@example(processor={"min_pixels": 0, "size": {"shortest_edge": 9 * TOKEN, "longest_edge": 60 * TOKEN}}, width=30, height=30)
def test_pixel_limits_are_the_processors(processor: dict[str, Any], width: int, height: int) -> None:
    picture = Image.new("RGB", (width, height))
    try:
        limits = pixel_limits(processor)
    except CheckpointError as error:
        assert "\n" not in str(error)
        with pytest.raises((ValueError, TypeError)):
            Qwen2VLImageProcessorPil.from_dict(dict(processor))(images=picture)
        return
    grid = Qwen2VLImageProcessorPil.from_dict(dict(processor))(images=picture, return_tensors="np")["image_grid_thw"][0]
    assert tuple(14 * side for side in grid[1:]) == smart_resize(height, width, 28, *limits)


def test_pictures_that_are_not_resized_have_no_limit() -> None:
    with pytest.raises(CheckpointError, match="do_resize"):
        pixel_limits({"do_resize": False})


FILES: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "nested": ({"image_processor": {"max_pixels": 40 * TOKEN}}, None),
    "nested-first": ({"image_processor": {"max_pixels": 40 * TOKEN}}, {"max_pixels": 90 * TOKEN}),
    "nested-empty": ({"image_processor": {}}, {"max_pixels": 90 * TOKEN}),
    "nested-null": ({"image_processor": None}, {"max_pixels": 90 * TOKEN}),
    "beside": ({"max_pixels": 40 * TOKEN}, {"max_pixels": 90 * TOKEN}),
    "plain": (None, {"max_pixels": 90 * TOKEN, "size": {"shortest_edge": 5 * TOKEN, "longest_edge": 60 * TOKEN}}),
}


@pytest.mark.parametrize("case", FILES)
def test_the_file_that_counts(tmp_path: Path, case: str) -> None:
    for name, content in zip(("processor_config.json", "preprocessor_config.json"), FILES[case], strict=True):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)(images=Image.new("RGB", (900, 700)), return_tensors="np")
    grid = theirs["image_grid_thw"][0]
    assert tuple(14 * side for side in grid[1:]) == smart_resize(
        700, 900, 28, *pixel_limits(image_processor_settings(tmp_path)[0])
    )


@pytest.mark.parametrize("processor", [CLIPImageProcessorPil, LlavaNextImageProcessorPil])
@pytest.mark.parametrize(
    "crop",
    [
        {},
        {"crop_size": 42},
        {"crop_size": {"height": 42, "width": 42}},
        {"crop_size": None},
        {"crop_size": {"height": 42, "width": 28}},
        {"crop_size": 42, "do_center_crop": None},
    ],
    ids=str,
)
def test_crops_are_the_processors(tmp_path: Path, processor: Any, crop: dict[str, Any]) -> None:
    """What a tower takes is what the processor makes of a picture, or the export is refused."""
    kind = processor.__name__
    try:
        made = processor.from_dict(dict(crop))(images=Image.new("RGB", (90, 70)), return_tensors="np")["pixel_values"]
    except ValueError:
        made = np.zeros((0, 0))
    for size in (28, 42, 224, 336):
        tower = ClipTower(ClipVisionConfig(size, 14, 16, 32, 2, 1, 1e-5, "quick_gelu"), Pictures((size // 14) ** 2))
        if np.asarray(made).shape[-2:] == (size, size):
            tower.check_processor(read_image_settings(crop, kind), tmp_path)
        elif crop.get("do_center_crop", True):
            with pytest.raises(CheckpointError, match="crops to"):
                tower.check_processor(read_image_settings(crop, kind), tmp_path)
