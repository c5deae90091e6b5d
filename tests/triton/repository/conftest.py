"""Small bundles, which no test may change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import RandomLlava, write_random_llava

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders bundle, linked, quantized and bfloat16."""
    folder: Path = tmp_path_factory.mktemp("triton")
    checkpoint = write_random_llava(folder / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    for name, options in (
        ("bundle", {}),
        ("linked", {"weights": "link"}),
        ("quantized", {"quantize": "int8"}),
        ("bfloat16", {"dtype": "bfloat16"}),
    ):
        export(
            ExportRequest(
                str(checkpoint),
                folder / name,
                budget="12",
                max_prompt_tokens=60,
                max_new_tokens=20,
                **options,  # type: ignore[arg-type]
            )
        )
    return folder


@pytest.fixture
def bundle(origin: Path) -> Path:
    return origin / "bundle"
