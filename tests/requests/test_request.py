"""room_for_answer: exact at every limit, in front of engines that would write past a full cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sts_export.errors import PromptError, RequestError
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.media.prepared import PreparedImage
from sts_export.reference.pruning.random_keys import random_key
from sts_export.requests.request import Request, room_for_answer
from sts_export.requests.sampling_config import SamplingConfig

PLENTY = 1000


def image(tokens: int, span: int = 0, newlines: int = 0) -> PreparedImage:
    rows = np.full(tokens + newlines, VISUAL_ROW)
    rows[tokens:] = -2
    return PreparedImage({}, 1, tokens, np.arange(tokens), rows, np.zeros((3, len(rows)), np.int64), span)


def manifest(*, mrope: bool = False, **capacities: Any) -> Any:
    limits = {"prompt_tokens": 10, "visual_tokens": 40, "new_tokens": 8, "lower": PLENTY, "upper": PLENTY, "positions": PLENTY}
    room = {**limits, **capacities}
    room["rows"] = (room.pop("lower"), room.pop("upper"))
    model = SimpleNamespace(unpruned_positions=lambda pruning: mrope)
    return SimpleNamespace(capacities=SimpleNamespace(**room), model=model, pruning=None)


def prompt(text: int, visual: int) -> Any:
    return np.array([5] * text + [VISUAL_ROW] * visual)


TWO = (image(30, span=6), image(10, span=5, newlines=2))
KEEPS = ((12, 4), (10, 3))
ROWS = prompt(7, 12 + 10 + 2)  # 31 rows in the lower part, 31 - 22 + 7 = 16 in the upper one
FULL: dict[str, Any] = {"lower": 31, "upper": 16, "positions": 31}


@pytest.mark.parametrize("limit", FULL)
@pytest.mark.parametrize("room", [1, 2, 5, 9, 30])
def test_every_limit_is_used_to_its_last_row(limit: str, room: int) -> None:
    """The last token generated is never written: ``room`` tokens need room - 1 rows."""
    bundle = manifest(**{limit: FULL[limit] + room - 1})
    assert room_for_answer(bundle, ROWS, TWO, KEEPS, room) == room
    assert room_for_answer(bundle, ROWS, TWO, KEEPS, None) == min(room, 8)
    assert room_for_answer(bundle, ROWS, TWO, KEEPS, 1) == 1
    with pytest.raises(RequestError, match=f"^{room + 1} new tokens do not fit: after 7 text tokens there is room for {room};"):
        room_for_answer(bundle, ROWS, TWO, KEEPS, room + 1)


@pytest.mark.parametrize("room", [1, 4])
def test_mrope_positions_are_those_of_the_unpruned_prompt(room: int) -> None:
    """An image takes as many positions as its longer side, however many of its tokens are left."""
    images, rows = (image(30, span=6), image(24, span=5)), prompt(7, 5)
    bundle = manifest(mrope=True, positions=7 + 6 + 5 + room - 1)
    assert room_for_answer(bundle, rows, images, ((3, 1), (2, 1)), room) == room
    with pytest.raises(RequestError, match="do not fit"):
        room_for_answer(bundle, rows, images, ((3, 1), (2, 1)), room + 1)
    # Without M-RoPE they are the rows.
    assert room_for_answer(manifest(positions=12), rows, images, ((3, 1), (2, 1)), 1) == 1


@pytest.mark.parametrize("limit", FULL)
def test_a_prompt_that_leaves_no_room_says_what_there_is(limit: str) -> None:
    for missing in (1, 2, FULL[limit]):
        with pytest.raises(PromptError) as caught:
            room_for_answer(manifest(**{limit: FULL[limit] - missing}), ROWS, TWO, KEEPS, None)
        message = str(caught.value)
        assert "7 text tokens and 2 image(s) of 40 visual tokens (24 rows after stage 1)" in message and "\n" not in message
        assert "--max-visual-tokens" not in message  # of those there is room


def test_too_many_images_say_how_many_tokens_they_have() -> None:
    with pytest.raises(PromptError, match=r"--max-prompt-tokens or --max-visual-tokens 40$"):
        room_for_answer(manifest(lower=30, visual_tokens=36), ROWS, TWO, KEEPS, None)


def test_a_budget_of_the_request_may_be_smaller() -> None:
    with pytest.raises(PromptError, match=r"--max-prompt-tokens, or give a smaller budget$"):
        room_for_answer(manifest(lower=30), ROWS, TWO, KEEPS, None, own_budget=True)


def test_text_alone() -> None:
    bundle = manifest(lower=20, upper=18, positions=20)
    assert room_for_answer(bundle, prompt(18, 0), (), (), None) == 1
    with pytest.raises(
        PromptError, match="the prompt is too long: 19 text tokens leave no room for an answer in 20 cache rows"
    ):
        room_for_answer(bundle, prompt(19, 0), (), (), None, own_budget=True)


@pytest.mark.parametrize("number", [0, -1])
def test_at_least_one_token(number: int) -> None:
    with pytest.raises(RequestError, match=f"max_new_tokens must be at least 1, not {number}"):
        room_for_answer(manifest(), ROWS, TWO, KEEPS, number)


def test_rows_of_each_image_are_what_stage_1_leaves_and_its_newlines() -> None:
    request = Request(ROWS, TWO, KEEPS, 5, SamplingConfig(), (), False, 0.0, 0.0)
    assert request.rows == [12, 10 + 2]
    assert Request(prompt(3, 0), (), (), 5, SamplingConfig(), (), False, 0.0, 0.0).rows == []


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("room", [1, 4])
def test_every_part_of_a_decoder_that_is_cut_twice_has_its_limit(part: int, room: int) -> None:
    taken = (31, 16, 7 + 2 + 3)  # text and newlines stay; of the images 22, 7 and 3 tokens are left
    bundle = manifest()
    bundle.capacities.rows = tuple(rows + room - 1 if index == part else PLENTY for index, rows in enumerate(taken))
    keeps = ((12, 4, 2), (10, 3, 1))
    assert room_for_answer(bundle, ROWS, TWO, keeps, None) == min(room, 8)
    with pytest.raises(RequestError, match=f"there is room for {room};"):
        room_for_answer(bundle, ROWS, TWO, keeps, room + 1)


@pytest.mark.parametrize("seed", [None, 0, 7, 2**31, 2**63, 2**80 + 3])
def test_any_seed_of_sampling_draws_tokens_as_an_int64(seed: int | None) -> None:
    request = Request(ROWS, TWO, KEEPS, 5, SamplingConfig(seed=seed), (), False, 0.0, 0.0)
    fed = int(np.array([request.seed], np.int64)[0])
    words = [2, 0, 5]
    assert random_key(fed, words) == random_key(seed or 0, words)
