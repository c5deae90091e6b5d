"""Sizes of the selector's outputs from those of its inputs; the decoder's are in test_parts."""

from __future__ import annotations

import pytest

from sts_export.graphs.contracts import TensorSpec, selector_contract
from sts_export.graphs.sizes import derived_sizes


@pytest.mark.parametrize(
    ("crops", "steps", "tokens", "kept"),
    [(1, 12, 36, 12), (5, 12, 180, 60), (5, 36, 100, 100), (1, 1, 1, 1)],  # of unpadded crops fewer tokens are read
)
def test_kept_tokens(crops: int, steps: int, tokens: int, kept: int) -> None:
    features = TensorSpec("visual_features", ("crops", 36, 16), "float32")
    contract = selector_contract((features,), 24, "float32")
    known = {"crops": crops, "steps": steps, "tokens": tokens}
    assert derived_sizes(contract, known) == {"kept": kept}
