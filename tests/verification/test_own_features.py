"""What `verify` gives the reference's stage 1: the numbers that the bundle's own graphs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sts_export.exporting.exporter import ExportRequest, export
from sts_export.generation.pipeline import Pipeline
from sts_export.testing.checkpoints import RandomLlava, RandomQwen25VL, write_random_llava, write_random_qwen2_5_vl
from sts_export.verification.answers import PROMPTS, verify

torch.set_num_threads(1)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_text_is_compared_as_a_quantized_bundle_stores_it(tmp_path: Path, scheme: str) -> None:
    """CDPruner's relevance is of embeddings in 8 bits; with those of the checkpoint some of these prompts keep other tokens.

    Logits of random weights are too far off in int4 for the verdict.
    """
    source = write_random_qwen2_5_vl(tmp_path / "source", RandomQwen25VL(layers=2, seed=5))
    request = ExportRequest(str(source), tmp_path / "bundle", method="cdpruner", budget="20%", quantize=scheme)
    report = verify(export(request).folder, max_new_tokens=1)
    assert [pair.stage1_equal for pair in report.pairs] == [True] * len(PROMPTS)
    assert not any(pair.near_tie for pair in report.pairs)


@pytest.mark.parametrize(("dtype", "near_tie"), [("float16", True), ("float32", False)])
def test_ties_are_those_of_the_choice_that_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, near_tie: bool
) -> None:
    """Of the bundle's own features in narrow types, equal ones here, and of the reference's in float32."""
    source = write_random_llava(tmp_path / "source", RandomLlava(layers=2, vision_layers=2))
    bundle = export(ExportRequest(str(source), tmp_path / "bundle", budget="20%", dtype=dtype)).folder
    features = Pipeline.features

    def equal(self: Pipeline, image: Any) -> dict[str, Any]:
        return {name: np.ones_like(values) for name, values in features(self, image).items()}

    monkeypatch.setattr(Pipeline, "features", equal)
    (pair,) = verify(bundle, pairs=1, max_new_tokens=1).pairs
    assert pair.near_tie is near_tie and pair.stage1_equal is not near_tie
