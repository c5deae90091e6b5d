"""Bundles of the three families in 16 bits, which no test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

TEXT, NEW, KEEP = 48, 16, (12, 5)
# Of a bundle whose decoder is cut once, in the order in which they run.
GRAPHS = ("vision_encoder", "selector", "llm_lower", "llm_upper")


def export_to(checkpoint: Path, output: Path, dtype: str, **options: object) -> Bundle:
    settings = {"keep": KEEP, "max_prompt_tokens": TEXT, "max_new_tokens": NEW, "dtype": dtype, **options}
    return export(ExportRequest(str(checkpoint), output=output, **settings))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "llava": write_random_llava(folder / "llava", RandomLlava(vision_width=64, layers=3)),
        "llava_next": write_random_llava_next(folder / "llava_next", RandomLlavaNext(vision_width=64, layers=3)),
        "qwen2_5_vl": write_random_qwen2_5_vl(folder / "qwen2_5_vl", RandomQwen25VL(vision_width=64, vision_heads=4)),
    }


@pytest.fixture(scope="session")
def bundles(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {family: export_to(checkpoint, folder / family, "float16") for family, checkpoint in checkpoints.items()}


@pytest.fixture(scope="session")
def bundle(bundles: dict[str, Bundle]) -> Bundle:
    return bundles["llava"]


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    return open_bundle(shutil.copytree(bundle.folder, folder / "bundle"))
