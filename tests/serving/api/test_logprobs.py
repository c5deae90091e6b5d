"""Log-probabilities in OpenAI's two forms are the pipeline's, whole and streamed."""

from __future__ import annotations

from typing import Any, cast

import openai
import pytest

from sts_export.generation.next_token.logprobs import TokenLogprobs
from sts_export.requests.token_bytes import TokenBytes
from sts_export.serving.api.logprobs import LogprobsForm
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
    assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[-1] <= len(found.text)
    assert all(1 <= len(top) <= 2 for top in logprobs.top_logprobs or ())
    chunks = list(client.completions.create(model=MODEL, prompt=prompt, logprobs=2, stream=True))
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [value for one in told for value in getattr(one, name)] == getattr(logprobs, name)


class Pieces:
    """Tokens that are the bytes of a list; the last one is special."""

    def __init__(self, *pieces: str | bytes) -> None:
        self._pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    def of(self, token: int, *, first: bool = False) -> bytes:
        return self._pieces[token].lstrip() if first else self._pieces[token]

    def is_special(self, token: int) -> bool:
        return token == len(self._pieces) - 1


def told(pieces: Pieces, tokens: list[int], top: list[tuple[int, float]]) -> dict[str, Any]:
    form = LogprobsForm(cast(TokenBytes, pieces))
    return form.text([TokenLogprobs(token, -1.0, tuple(top)) for token in tokens])


EURO = "€".encode()
PARTS = Pieces(" a", "a", EURO[:1], EURO[1:2], EURO[2:], "bc", "</s>")


def test_offsets_are_those_of_the_text() -> None:
    """Three tokens are one character; a special token is none, wherever it stands."""
    found = told(PARTS, [0, 2, 3, 4, 6, 5, 0, 6], [])
    assert found["tokens"] == ["a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "</s>", "bc", " a", "</s>"]
    text = "a€bc a"
    assert found["text_offset"] == [0, 1, 1, 1, 2, 2, 4, 6]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if token.strip() in ("a", "bc"):
            assert text[offset:].startswith(token)


def test_the_likeliest_of_tokens_with_one_name_is_told() -> None:
    top = [(0, -0.1), (1, -2.0), (2, -3.0), (3, -4.0)]
    first, later = told(PARTS, [5, 5], top)["top_logprobs"]
    assert list(first) == ["a", r"bytes:\xe2", r"bytes:\x82"]
    assert first == {"a": -0.1, r"bytes:\xe2": -3.0, r"bytes:\x82": -4.0}
    assert later == {" a": -0.1, "a": -2.0, r"bytes:\xe2": -3.0, r"bytes:\x82": -4.0}


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
