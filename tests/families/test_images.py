"""open_images: each family has its way, and takes no other family's image processor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sts_export.checkpoints.checkpoint import image_processor_settings
from sts_export.errors import CheckpointError
from sts_export.families import family_of
from sts_export.families.images import open_images
from sts_export.families.spec import ModelSpec
from sts_export.media.anyres import AnyresImages
from sts_export.media.fixed import FixedImages
from sts_export.media.qwen import QwenImages
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    random_image,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

FAMILIES: dict[str, tuple[type, Callable[[Path], Path]]] = {
    "llava": (FixedImages, lambda f: write_random_llava(f, RandomLlava(layers=2))),
    "llava_next": (AnyresImages, lambda f: write_random_llava_next(f, RandomLlavaNext(layers=2))),
    "llava_next-4.x": (AnyresImages, lambda f: write_random_llava_next(f, RandomLlavaNext(layers=2, layout="4.x"))),
    "qwen2_5_vl": (QwenImages, lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL(layers=2))),
    "qwen2_5_vl-4.x": (QwenImages, lambda f: write_random_qwen2_5_vl(f, RandomQwen25VL(layers=2, layout="4.x"))),
}
Opened = Callable[[str], tuple[Path, ModelSpec]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A family's checkpoint and its dimensions."""

    @cache
    def write(name: str) -> tuple[Path, ModelSpec]:
        folder = FAMILIES[name][1](tmp_path_factory.mktemp(name))
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return folder, family_of(config).parse(config, image_processor_settings(folder)[0])

    return write


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_its_way(opened: Opened, name: str) -> None:
    folder, spec = opened(name)
    images = open_images(folder, spec)
    assert type(images) is FAMILIES[name][0]
    image = images.prepare(random_image(0, (200, 90)))
    assert 1 <= image.num_tokens <= spec.max_image_tokens and image.num_newlines <= spec.max_image_newlines


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, other) for name in ("llava", "llava_next", "qwen2_5_vl") for other in ("llava", "llava_next", "qwen2_5_vl")],
)
def test_another_familys_processor_is_refused(opened: Opened, tmp_path: Path, name: str, other: str) -> None:
    folder = Path(shutil.copytree(opened(name)[0], tmp_path / "copy"))
    settings, _ = image_processor_settings(opened(other)[0])
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    if name == other:
        open_images(folder, opened(name)[1])
        return
    with pytest.raises(CheckpointError, match="restore the original file") as caught:
        open_images(folder, opened(name)[1])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
