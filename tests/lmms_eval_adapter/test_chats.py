"""Messages of lmms-eval become messages with places, and pictures in their order."""

from __future__ import annotations

from typing import Any

import pytest

from sts_export.errors import PromptError
from sts_export.lmms_eval_adapter.chats import unpack
from sts_export.testing.checkpoints import random_image


def test_pictures_come_apart_in_their_order() -> None:
    first, second = random_image(1), random_image(2)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Is"}, {"type": "image", "url": first}, {"type": "text", "text": "a"}],
        },
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": [{"type": "image", "url": second}, {"type": "image", "url": "c.png"}]},
    ]
    unpacked, images = unpack(messages)
    assert unpacked == [
        {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is"}, {"type": "image"}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}]},
    ]
    assert images[0] is first and images[1] is second and images[2] == "c.png" and len(images) == 3


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "video", "url": "a.mp4"}, "a video"),
        ({"type": "audio", "url": {"array": [0.0]}}, "a sound"),
        ({"type": "point", "url": 3}, "'point'"),
        ({"type": "image", "url": None}, "not None"),
        ({"type": "image", "url": {"bytes": b""}}, "not {'bytes': b''}"),
    ],
)
def test_what_is_no_text_or_picture_is_refused(part: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=said) as caught:
        unpack([{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}])
    assert "\n" not in str(caught.value)


NO_CHATS = [None, "What?", {"role": "user"}, [None], [{"role": "user"}], [{"content": {"text": "a"}}]]


@pytest.mark.parametrize("messages", NO_CHATS)
def test_what_is_no_chat_is_refused(messages: Any) -> None:
    with pytest.raises(PromptError, match="correct the task's doc_to_messages"):
        unpack(messages)


def test_a_part_that_is_no_part_is_refused() -> None:
    with pytest.raises(PromptError, match="the messages hold 'What"):
        unpack([{"role": "user", "content": ["What?"]}])
