"""The counts behind the explanation of wrong "yes": what they are of, and that patches are told apart rightly."""

from __future__ import annotations

import pytest

from scripts.demo_results.absences import background_of, count, given, main
from scripts.demo_training.labels import PATCHES
from sts_export.demo.drawing import draw
from sts_export.demo.held_out import held_out_questions
from sts_export.demo.world import HELD_OUT_SEEDS, sample_scene

PICTURES = 6
SIDE, REACH = 14, 8  # pixels of a patch, and around a thing


def test_background_is_what_nothing_is_near() -> None:
    owner = draw(sample_scene(HELD_OUT_SEEDS[2])).owner
    background = background_of(2)
    assert 0 < len(background) < PATCHES
    for patch in range(PATCHES):
        top, left = (SIDE * place for place in divmod(patch, 24))
        inside = (owner[top : top + SIDE, left : left + SIDE] >= 0).any()
        around = owner[max(0, top - REACH) : top + SIDE + REACH, max(0, left - REACH) : left + SIDE + REACH]
        if patch in background:
            assert not inside
        else:
            assert (around >= 0).any()


def test_what_the_decoder_is_given() -> None:
    sets = given({1, 2, 3}, {3, 4}, seed=0)
    assert sets["what stage 1 kept"] == {1, 2, 3} and sets["and all background patches"] == {1, 2, 3, 4}
    assert sets["all but background patches"] == set(range(PATCHES)) - {3, 4}
    assert len(sets["as many random patches"]) == 3


def test_the_questions_are_those_to_be_answered_no(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [q for index in range(PICTURES) for q in held_out_questions(index) if (q.kind, q.answer) == ("presence", "no")]
    counts = count(PICTURES)
    assert counts.asked == len(asked) > 0
    assert len(counts.shares) == counts.cases <= counts.asked
    assert all(0 <= yes <= counts.cases for yes in counts.yes.values())
    main(1)
    assert "questions with the answer no" in capsys.readouterr().out
