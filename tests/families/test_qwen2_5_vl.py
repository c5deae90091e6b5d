"""Qwen2.5-VL's picture sizes: what the processor's settings allow, and how --max-visual-tokens makes them smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from sts_export import Pipeline
from sts_export.checkpoints.checkpoint import image_processor_settings
from sts_export.errors import CheckpointError, ImageError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.families.qwen2_5_vl import limit_tokens, max_image_tokens, parse, pixel_limits
from sts_export.graphs.towers.qwen2_5_vl_contract import QwenVisionConfig
from sts_export.testing.checkpoints import RandomQwen25VL, random_image, write_random_qwen2_5_vl
from sts_export.testing.public_models import PUBLIC_MODELS

torch.set_num_threads(1)

SIDE = 28
TOKEN = SIDE**2  # pixels of a token
CONFIG = PUBLIC_MODELS["Qwen/Qwen2.5-VL-7B-Instruct"].config
DEFAULT = 1280 * TOKEN
PROCESSORS: dict[str, tuple[dict[str, Any], int]] = {
    "of-4.x": ({"min_pixels": 3136, "max_pixels": 1003520}, 1003520),
    "of-5.x": ({"size": {"shortest_edge": 3136, "longest_edge": 1003520}}, 1003520),
    "both": ({"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "max_pixels": 1003520}, 1003520),
    "none": ({}, DEFAULT),
    "null": ({"max_pixels": None, "size": None}, DEFAULT),
}


@pytest.mark.parametrize(("processor", "pixels"), PROCESSORS.values(), ids=PROCESSORS.keys())
def test_the_largest_image_is_the_processors(processor: dict[str, Any], pixels: int) -> None:
    assert pixel_limits(processor) == (3136, pixels)
    spec = parse(CONFIG, processor)
    assert spec.max_image_tokens == max_image_tokens(3136, pixels, SIDE) == pixels // TOKEN
    if processor and None not in processor.values():
        assert Qwen2VLImageProcessorPil.from_dict(processor).size["longest_edge"] == pixels


sides = st.integers(1, 5000)


@settings(derandomize=True, deadline=None, database=None, max_examples=400)
@given(height=sides, width=sides, tokens=st.sampled_from([30, 80, 200, 400, 1280, 16384]))
@example(height=10, width=2000, tokens=30)
@example(height=5000, width=25, tokens=1280)
def test_no_picture_is_larger_than_the_largest(height: int, width: int, tokens: int) -> None:
    """Also strips, which keep one token across."""
    if max(height, width) > 200 * min(height, width):
        return
    spec = parse(CONFIG, {"size": {"shortest_edge": 3136, "longest_edge": tokens * TOKEN}})
    high, wide = smart_resize(height, width, SIDE, 3136, tokens * TOKEN)
    assert high * wide // TOKEN <= spec.max_image_tokens
    assert isinstance(spec.vision, QwenVisionConfig) and max(high, wide) // 14 <= spec.vision.max_grid_side


@settings(derandomize=True, deadline=None, database=None, max_examples=400)
@given(height=sides, width=sides, tokens=st.sampled_from([30, 80, 200, 1280]))
@example(height=319, width=2359, tokens=1280)
@example(height=4, width=6, tokens=200)
@example(height=18, width=1281, tokens=80)
def test_nor_where_small_pictures_are_enlarged(height: int, width: int, tokens: int) -> None:
    """min_pixels = max_pixels: rounding up to min_pixels goes beyond max_pixels."""
    if max(height, width) > 200 * min(height, width):
        return
    spec = parse(CONFIG, {"size": {"shortest_edge": tokens * TOKEN, "longest_edge": tokens * TOKEN}})
    high, wide = smart_resize(height, width, SIDE, tokens * TOKEN, tokens * TOKEN)
    assert high * wide // TOKEN <= spec.max_image_tokens


def test_limit_tokens_changes_nothing_but_the_size() -> None:
    old = {"min_pixels": 3136, "max_pixels": 1003520, "patch_size": 14, "image_processor_type": "Qwen2VLImageProcessor"}
    new = limit_tokens(old, 256)
    assert new == {
        "patch_size": 14,
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 3136, "longest_edge": 256 * TOKEN},
    }
    assert limit_tokens(new, 256) == new
    assert limit_tokens(new, 10_000) == new  # never larger than the processor makes them
    assert limit_tokens({}, 256)["size"] == {"shortest_edge": 3136, "longest_edge": 256 * TOKEN}
    # A least size near or beyond the limit comes down with it, since enlarged pictures are rounded up.
    assert limit_tokens({"min_pixels": 500_000, "max_pixels": 10**6}, 256)["size"] == {
        "shortest_edge": 64 * TOKEN,
        "longest_edge": 256 * TOKEN,
    }


@pytest.fixture(scope="module", params=["5.x", "4.x"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = RandomQwen25VL(layers=2, layout=request.param, min_pixels=4 * TOKEN, max_pixels=400 * TOKEN)
    return write_random_qwen2_5_vl(tmp_path_factory.mktemp("qwen") / "checkpoint", spec)


def exported(checkpoint: Path, folder: Path, most: int | None) -> Pipeline:
    request = ExportRequest(
        str(checkpoint), folder / "bundle", budget="20%", max_visual_tokens=most, max_prompt_tokens=80, max_new_tokens=4
    )
    return Pipeline(export(request).folder, threads=1)


PICTURES = [(800, 800), (640, 480), (300, 700), (100, 50)]
STRIPS = [(2000, 10), (10, 2000), (5, 900)]


@pytest.mark.parametrize("most", [300, 220, 100, 30])
def test_max_visual_tokens_makes_pictures_smaller(checkpoint: Path, tmp_path: Path, most: int) -> None:
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    vlm = exported(checkpoint, tmp_path, most)
    _, source = image_processor_settings(checkpoint)
    written, where = image_processor_settings(vlm.bundle.folder)
    assert where.name == source.name and written["size"]["longest_edge"] <= most * TOKEN
    record = next(record for record in vlm.manifest.companions if record.file == source.name)
    assert record.size == where.stat().st_size  # and open_bundle has compared the hash
    model, capacities = vlm.manifest.model, vlm.manifest.capacities
    assert capacities.visual_tokens >= model.max_image_tokens == vlm.manifest.pruning.num_visual_tokens
    assert model.max_image_tokens == most
    counts = [vlm.prepared(random_image(0, size)).num_tokens for size in PICTURES]
    assert max(counts) <= most
    assert counts[0] > most * 0.75  # no smaller than they have to be
    for size in PICTURES:
        assert vlm.generate("What?", random_image(0, size), max_new_tokens=2).visual_tokens.stage1 >= 1
    for size in STRIPS:  # as many tokens as they are long, however few pixels they may have
        high, wide = smart_resize(size[1], size[0], SIDE, *written["size"].values())
        if high * wide // TOKEN <= most:
            assert vlm.prepared(random_image(0, size)).num_tokens == high * wide // TOKEN
        else:
            with pytest.raises(ImageError, match=rf"visual tokens, and this bundle takes {most}; crop it"):
                vlm.prepared(random_image(0, size))
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before  # the source is left alone


def test_without_a_limit_the_processor_file_stays(checkpoint: Path, tmp_path: Path) -> None:
    for most in (None, 400, 900):
        vlm = exported(checkpoint, tmp_path / str(most), most)
        _, source = image_processor_settings(checkpoint)
        assert (vlm.bundle.folder / source.name).read_bytes() == source.read_bytes()
        assert (vlm.manifest.model.max_image_tokens, vlm.manifest.capacities.visual_tokens) == (400, most or 400)


def test_two_pictures_fit_where_two_were_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    vlm = exported(checkpoint, tmp_path, 800)
    two = vlm.generate("Which?", [random_image(0, (800, 800)), random_image(1, (800, 800))], ignore_eos=True)
    assert two.visual_tokens.total == 800 and len(two.token_ids) == 4
    assert [len(kept) for kept in two.kept_stage1] == [vlm.manifest.pruning.keep_stage1] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_size": 4}, "has merge_size 4, the vision tower 2"),
        ({"patch_size": 28}, "has patch_size 28, the vision tower 14"),
        ({"temporal_patch_size": 1}, "has temporal_patch_size 1, the vision tower 2"),
        ({"image_processor_type": "CLIPImageProcessor"}, "asks for CLIPImageProcessor, but qwen2_5_vl models have"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_processor_that_does_not_fit_is_refused_at_export(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Before weights are copied; in the bundle it would cut the picture into other tokens."""
    checkpoint = write_random_qwen2_5_vl(tmp_path / "checkpoint", RandomQwen25VL(layers=2, layout="4.x"))
    settings_file = checkpoint / "preprocessor_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        export(ExportRequest(str(checkpoint), output=tmp_path / "bundle", budget="20%"))
    assert not (tmp_path / "bundle").exists()
