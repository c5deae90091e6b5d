"""Whether two engines choose the same tokens, and whether the first difference is a near tie.

With random weights and float16 the best two tokens are often close; a difference there is rounding, not a mistake, so this
reports and does not judge.
"""

from __future__ import annotations

from typing import Any

from sts_export.measuring.turns import Outcome

NEAR_TIE = 2e-2  # of the largest logit: float16 rounding through 32 layers


def agreement(ours: Outcome | None, theirs: Outcome | None) -> dict[str, Any] | None:
    """Greedy tokens of the unpruned bundle against those of transformers.

    Returns:
        None if one of them was not measured; else ``equal``: how many leading tokens agree ``of`` how many; where one
        differs, ``margin``: how far transformers' second choice was behind its first there, relative to the largest logit,
        ``second_choice``: whether ours was that one, and ``near_tie``: both of that.
    """
    if ours is None or theirs is None:
        return None
    found, expected = ours.details["tokens"], theirs.details["tokens"]
    equal = next((index for index, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), len(expected))
    report: dict[str, Any] = {"equal": equal, "of": len(expected), "finite": theirs.details["finite"]}
    if equal < len(expected):
        margin = theirs.details["margins"][equal]
        second = found[equal] == theirs.details["second_tokens"][equal]
        report |= {"margin": margin, "second_choice": second, "near_tie": second and margin < NEAR_TIE}
    return report
