"""Stage 2 at random."""

from __future__ import annotations

import torch

from sts_export.reference import find_stage2
from sts_export.reference.pruning.random_keys import random_key
from tests.reference.pruning.stage2.prefills import prefill_of


def test_keys_follow_the_seed_and_the_number_of_the_row() -> None:
    stage, seen = find_stage2("random"), []
    for kinds in ("tvvvvvvt", "ttvvvnvvvtt"):  # where the rows stand does not matter
        kept = stage(prefill_of(kinds, torch.zeros(1, len(kinds), 2), seed=11), 3)
        keys = [random_key(11, [2, 0, number]) for number in range(6)]
        assert kept.scores is not None and kept.scores.tolist() == keys
        assert kept.chosen.tolist() == sorted(sorted(range(6), key=lambda number: -keys[number])[:3])
        seen.append(kept.chosen.tolist())
    assert seen[0] == seen[1]
    other = {tuple(stage(prefill_of("tvvvvvvt", torch.zeros(1, 8, 2), seed=seed), 3).chosen.tolist()) for seed in range(9)}
    assert len(other) > 3
