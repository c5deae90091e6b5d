"""Log-probabilities in OpenAI's two forms are the pipeline's, whole and streamed."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from sts_export.generation.next_token.logprobs import TokenLogprobs
from tests.support.mixed_requests import REQUESTS, Opened
from tests.support.scheduling.served import MODEL, chat

Client = openai.OpenAI
PLACES = (0, 3, 6)


def wanted_of(opened: Opened, index: int, top: int) -> list[TokenLogprobs]:
    prompt, images = REQUESTS[index]
    found = opened("llava").generate(prompt, () if images is None else images, logprobs=top).logprobs
    assert found is not None
    return list(found)


def is_special(opened: Opened, token: int) -> bool:
    return opened("llava").tokenizer.decode([token]) == ""


def check(opened: Opened, content: Any, wanted: list[TokenLogprobs], text: str) -> None:
    tokens = opened("llava").tokenizer.token_bytes
    for place, (entry, one) in enumerate(zip(content, wanted, strict=True)):
        assert bytes(entry.bytes) == tokens.of(one.token_id, first=place == 0)
        assert entry.logprob == one.logprob
        likeliest = [(tokens.of(token, first=place == 0), logprob) for token, logprob in one.top]
        assert [(bytes(other.bytes), other.logprob) for other in entry.top_logprobs] == likeliest
    said = b"".join(
        bytes(entry.bytes) for entry, one in zip(content, wanted, strict=True) if not is_special(opened, one.token_id)
    )
    assert said.decode(errors="replace") == text


@pytest.mark.parametrize("index", PLACES)
@pytest.mark.parametrize("top", [0, 3])
def test_chats(client: Client, opened: Opened, index: int, top: int) -> None:
    wanted = wanted_of(opened, index, top)
    asked: Any = {"model": MODEL, "messages": chat(*REQUESTS[index]), "logprobs": True, "top_logprobs": top}
    choice = client.chat.completions.create(**asked).choices[0]
    check(opened, choice.logprobs.content, wanted, choice.message.content)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    content = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    check(opened, content, wanted, choice.message.content)


def test_plain_completions(client: Client, opened: Opened) -> None:
    prompt = opened("llava").tokenizer.render("Describe the text.", 0)
    wanted = wanted_of(opened, 3, 2)
    found = client.completions.create(model=MODEL, prompt=prompt, logprobs=2).choices[0]
    logprobs = found.logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.text_offset is not None
    assert logprobs.token_logprobs == [one.logprob for one in wanted]
    for text, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "".join(logprobs.tokens)[offset:].startswith(text)
    assert all(1 <= len(top) <= 2 for top in logprobs.top_logprobs or ())
    chunks = list(client.completions.create(model=MODEL, prompt=prompt, logprobs=2, stream=True))
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [value for one in told for value in getattr(one, name)] == getattr(logprobs, name)


@pytest.mark.parametrize(
    "wrong, words",
    [({"top_logprobs": 2}, "logprobs"), ({"logprobs": True, "top_logprobs": 21}, "20"), ({"logprobs": 3}, "logprobs")],
)
def test_wrong_ones(client: Client, wrong: dict[str, Any], words: str) -> None:
    asked: Any = {"model": MODEL, "messages": chat("Where?"), **wrong}
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**asked)


def test_none_unless_asked_for(client: Client) -> None:
    asked: Any = {"model": MODEL, "messages": chat("Where?")}
    assert client.chat.completions.create(**asked).choices[0].logprobs is None
    assert all(chunk.choices[0].logprobs is None for chunk in client.chat.completions.create(**asked, stream=True))
