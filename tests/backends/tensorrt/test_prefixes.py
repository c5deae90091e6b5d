"""Turns of chats that go on behind the rows of earlier ones, on fakes of TensorRT: in place, and in two buffers.

The fakes refuse to go on from rows that nobody wrote, and from a buffer that is not the one written last.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from sts_export import Pipeline
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.request import Request
from sts_export.testing.checkpoints import random_image
from tests.generation.scheduling.chats import token_by_token, turned
from tests.support.tensorrt_backend import Opened, flavour_of

TURN, MORE = 3, [40, 77, 12, 90]


def asked(vlm: Pipeline, number: int, new_tokens: int = TURN) -> Request:
    picture = random_image(number, (120, 90))
    return vlm.prepare("What is it" + "?" * number, picture, max_new_tokens=new_tokens, ignore_eos=True)


@pytest.mark.parametrize("slots", [1, 3])
def test_turns_of_three_chats(opened: Opened, expected: Pipeline, slots: int) -> None:
    """Asked in turn: what is found is right, and what a step of fewer slots has left behind is computed again."""
    opened.device.slots.may_go_back = True
    vlm = opened.pipeline()
    found = []
    with Scheduler(vlm, slots=slots, reuse_prefixes=True) as scheduler:
        chats = [asked(vlm, number) for number in range(3)]
        whole = [len(chat.input_ids) for chat in chats]
        for _ in range(3):
            answers = [scheduler.submit(chat) for chat in chats]
            for number, answer in enumerate(answers):
                result, chat = answer.result, chats[number]
                found.append(result.cached_tokens)
                if not result.cached_tokens:
                    whole[number] = len(chat.input_ids)
                assert result.token_ids == token_by_token(expected, chat, whole[number])[0]
                chats[number] = turned(chat, [*result.token_ids, *MORE])
    if slots == 3 and flavour_of(opened).aliased:
        assert all(found[3:])
    if slots == 1:
        assert not any(found)


def test_one_chat_after_another(opened: Opened, expected: Pipeline) -> None:
    """A chat whose slot no step left out goes on; one whose slot was left out does so where engines write in place."""
    opened.device.slots.may_go_back = True
    vlm = opened.pipeline()
    with Scheduler(vlm, slots=2, reuse_prefixes=True) as scheduler:
        chats = [asked(vlm, number) for number in range(2)]
        first, second = (scheduler.submit(chat).result for chat in chats)  # slots 0 and 1
        later = [turned(chat, [*one.token_ids, *MORE]) for chat, one in zip(chats, (first, second), strict=True)]
        zero = scheduler.submit(later[0]).result  # steps of slot 0 alone
        one = scheduler.submit(replace(later[1], max_new_tokens=1)).result
    assert zero.cached_tokens == len(chats[0].input_ids) + TURN - 1
    assert one.cached_tokens == (len(chats[1].input_ids) + TURN - 1 if flavour_of(opened).aliased else 0)
    assert zero.token_ids == token_by_token(expected, later[0], len(chats[0].input_ids))[0]
    rows = len(chats[1].input_ids) if one.cached_tokens else len(later[1].input_ids)
    assert one.token_ids == token_by_token(expected, later[1], rows)[0][:1]
