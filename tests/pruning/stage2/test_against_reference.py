"""Every stage inside the LLM against the reference, which is written apart from it: batches of random prompts.

Among them are prompts with several pictures, newlines, padding, one visual row, K' = V, no text behind the picture, equal rows.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from sts_export.pruning.registry import find_stage2, own_stage_names
from sts_export.pruning.settings import make_stage
from sts_export.reference import Prefill
from sts_export.reference import find_stage2 as find_reference
from tests.pruning.stage2.stage_calls import (
    PADDING,
    SCALE,
    TEXT,
    VISUAL,
    Prompts,
    behind_pictures,
    one_kinds,
    padded,
    random_prompts,
    survive,
    with_text,
)

BATCHES = 120
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in own_stage_names("stage2")},
    "last-token-next": ("last-token", {"score_layer": "next"}),
    "text-visual-next": ("text-visual", {"score_layer": "next"}),
}
# Stages whose scores are sums: equal rows may get numbers that differ in the last bit.
UNDECIDED = 1e-5


def batch(number: int) -> tuple[Prompts, int]:
    """The ``number``-th batch, and K'."""
    rng = np.random.default_rng(number)
    visual = 1 if number % 10 == 3 else int(rng.integers(2, 24))
    after = 0 if number % 10 == 4 else int(rng.integers(1, 7))
    requests = [
        one_kinds(rng, visual, int(rng.integers(0, 4)), behind, int(rng.integers(1, 3)))
        for behind in [after, *rng.integers(1, 7, int(rng.integers(0, 3))).tolist()]
    ]
    if not after:
        requests[0] = [TEXT, *requests[0]]
    prompts = random_prompts(rng, padded(requests, int(rng.integers(0, 3))))
    if number % 10 == 5:
        key, hidden = prompts.key.copy(), prompts.hidden.copy()
        pairs = key.shape[2] // 2
        key[:, :, 1 : 2 * pairs : 2] = key[:, :, : 2 * pairs : 2]
        hidden[:, 1 : 2 * pairs : 2] = hidden[:, : 2 * pairs : 2]
        prompts = replace(prompts, key=key, hidden=hidden)
    return prompts, visual if number % 10 == 7 else int(rng.integers(1, visual + 1))


def prefill_of(prompts: Prompts, request: int) -> Prefill:
    """One request without its padding, as the reference sees it."""
    kinds = prompts.kinds[request]
    real = torch.from_numpy(kinds != PADDING)
    query, key = (torch.from_numpy(array[request])[:, real] for array in (prompts.query, prompts.key))
    kinds = torch.from_numpy(kinds)[real]
    hidden = torch.from_numpy(prompts.hidden[request])[real]
    seed = int(prompts.seeds[request])
    return Prefill(kinds == VISUAL, lambda: (query, key), lambda: (query, key), SCALE, kinds == TEXT, lambda: hidden, seed)


@pytest.mark.parametrize("case", CASES)
def test_survivors_are_those_of_the_reference(case: str) -> None:
    name, settings = CASES[case]
    stage, reference = make_stage(find_stage2(name), settings), find_reference(name)
    compared = 0
    for number in range(BATCHES):
        prompts, keep = batch(number)
        keep = prompts.visual_count if stage.keeps_all else keep
        kept_rows, last_rows = survive(stage, prompts, keep)
        for request in range(len(prompts.kinds)):
            if name == "last-token" and not behind_pictures(prompts.kinds[request]):
                continue  # the last token of a prompt is text, or there is no prompt: the product refuses others
            kept = reference(prefill_of(prompts, request), keep, **asdict(stage))
            if kept.scores is not None and keep < len(kept.scores) and name != "random":
                ordered = kept.scores.sort(descending=True).values
                if float(ordered[keep - 1] - ordered[keep]) < UNDECIDED:
                    continue
            visual = np.flatnonzero(prompts.kinds[request] == VISUAL)[kept.chosen.numpy()].tolist()
            rows, last = with_text(prompts.kinds[request], visual)
            assert kept_rows[request] == rows and last_rows[request] == last, (number, request)
            compared += 1
    assert compared >= 100
