"""Checkpoints of every family, which no test may change."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from sts_export.testing.checkpoints import (
    RandomLlava,
    RandomLlavaNext,
    RandomQwen25VL,
    write_random_llava,
    write_random_llava_next,
    write_random_qwen2_5_vl,
)

torch.set_num_threads(1)


class Bases:
    """Base models, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.get = cache(self._get)

    def _get(self, name: str) -> Path:
        folder = self.folder / name
        if name == "llava_next":
            return write_random_llava_next(folder, RandomLlavaNext(layers=2, vision_layers=2))
        if name == "qwen2_5_vl":
            return write_random_qwen2_5_vl(folder, RandomQwen25VL(layers=2))
        if name == "tied":
            return write_random_llava(folder, RandomLlava(layers=2, vision_layers=2, tied_embeddings=True))
        if name == "llava":
            return write_random_llava(folder, RandomLlava(layers=2, vision_layers=2))
        if name == "sharded":
            return write_random_llava(folder, RandomLlava(layers=2, vision_layers=2, max_shard_size="100KB"))
        return write_random_llava(folder, RandomLlava(layers=2, vision_layers=2, dtype=name))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))
