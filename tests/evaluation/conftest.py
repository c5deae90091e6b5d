"""A random LLaVA and two of its bundles, which no test may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.helpers import export_pair


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``whole`` (budget 100%) and ``pruned`` (budget 12 of 36 tokens)."""
    import torch

    torch.set_num_threads(1)
    return export_pair(tmp_path_factory.mktemp("evaluated"))
