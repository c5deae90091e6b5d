"""One tiny checkpoint, which no test may change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sts_export.testing.checkpoints import RandomLlava, write_random_llava

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llava(tmp_path_factory.mktemp("checkpoint") / "tiny", RandomLlava(layers=2, vision_layers=2))
