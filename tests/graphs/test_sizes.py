"""Sizes of the selector's outputs from those of its inputs; the decoder's are in test_parts."""

from __future__ import annotations

import pytest

from sts_export.graphs.configs import ClipVisionConfig
from sts_export.graphs.contracts import selector_contract
from sts_export.graphs.sizes import derived_sizes


@pytest.mark.parametrize(
    ("crops", "steps", "tokens", "kept"),
    [(1, 12, 36, 12), (5, 12, 180, 60), (5, 36, 100, 100), (1, 1, 1, 1)],  # of unpadded crops fewer tokens are read
)
def test_kept_tokens(crops: int, steps: int, tokens: int, kept: int) -> None:
    vision = ClipVisionConfig(84, 14, 16, 32, 2, 1, 1e-5, "quick_gelu")
    contract = selector_contract(vision, 24, "float32", with_saliency=False)
    known = {"crops": crops, "steps": steps, "tokens": tokens}
    assert derived_sizes(contract, known) == {"kept": kept}
