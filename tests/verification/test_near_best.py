"""Types narrower than float32: which kept sets count as rounding's doing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sts_export.pruning.choosing import config_for_budget
from sts_export.reference.trace import Trace
from sts_export.verification.answers import NEAR_TIE, _near_best, _near_tie

SCORES = torch.tensor([0.5, 1.0, 0.97, 2.0])  # of tokens 3, 5, 6, 9; the reference keeps two


def near_best(kept: list[int], regret: float = 0.05, **shown: Any) -> bool:
    trace = Trace(tokens=[3, 5, 6, 9], **shown)
    ours, theirs = SimpleNamespace(kept_stage2=kept), SimpleNamespace(kept_stage2=[5, 9], trace=trace)
    return _near_best(ours, theirs, regret)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kept", "passes"), [([5, 9], True), ([6, 9], True), ([3, 9], False), ([5, 6], False)])
def test_scores_that_are_close_may_change_places(kept: list[int], passes: bool) -> None:
    assert near_best(kept, scores=SCORES) is passes
    assert near_best(kept) is (kept == [5, 9])  # without scores


def test_unclear_pivots_allow_any_set() -> None:
    """Within a tenth of the regret."""
    assert near_best([3, 9], scores=SCORES, stage2_margin=0.004)
    assert not near_best([3, 9], scores=SCORES, stage2_margin=0.006)
    assert near_best([3, 9], regret=0.2, scores=SCORES, stage2_margin=0.006)


@pytest.mark.parametrize(("method", "projects"), [("divprune", True), ("cdpruner", True), ("hiprune", False), ("sts", False)])
def test_projected_rows_tie_within_what_projecting_rounds(method: str, projects: bool) -> None:
    config = config_for_budget("64", method=method, num_visual_tokens=576, num_layers=32)
    assert _near_tie(config, "float32") == NEAR_TIE
    assert _near_tie(config, "float16") == pytest.approx(5e-4 if projects else NEAR_TIE)
