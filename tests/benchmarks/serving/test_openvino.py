"""The peer's server with a model of the tests: forms of answers, requests that share steps, and what goes wrong."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from benchmarks.serving.openvino.chat import ask_of
from tests.benchmarks.serving.echo import Echo, Serve

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def picture(pixels: np.ndarray[Any, np.dtype[np.uint8]] = PIXELS) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}}


def asked(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def client(serve: Serve) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serve(Echo())}/v1", api_key="none", max_retries=0)


def test_a_whole_answer_has_as_many_tokens_as_are_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**asked("abc"), max_tokens=7)
    assert answer.choices[0].message.content == "abcabca" and answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 7)


def test_a_streamed_answer_comes_in_pieces_that_end_between_characters(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked("aé"), max_tokens=5, **options))
    *pieces, last, usage = chunks
    assert [chunk.choices[0].delta.content for chunk in pieces] == ["a", "é", "a", "\N{REPLACEMENT CHARACTER}"]
    assert last.choices[0].finish_reason == "length" and not usage.choices and usage.usage.completion_tokens == 5


def test_pictures_are_where_their_tags_are() -> None:
    parts = [{"type": "text", "text": "one"}, picture(), picture(PIXELS[:2]), {"type": "text", "text": "two"}]
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": parts}]
    ask = ask_of(3, {"messages": messages, "max_tokens": 9, "ignore_eos": True, "budget": "32"})
    assert [message["content"] for message in ask.history] == ["be short", "one<ov_genai_image_0><ov_genai_image_1>two"]
    np.testing.assert_array_equal(ask.pictures[0], PIXELS)
    np.testing.assert_array_equal(ask.pictures[1], PIXELS[:2])
    assert (ask.number, ask.tokens, ask.ignore_eos) == (3, 9, True)


def test_requests_share_steps(serve: Serve) -> None:
    """The first steps wait until all requests are there."""
    everybody = threading.Event()
    model = Echo(lambda: everybody.wait(0.05))
    address = serve(model)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda text: httpx.post(f"{address}/v1/chat/completions", json=asked(text)), "abcd")
        while len(model.requests) < 4:
            everybody.wait(0.01)
        everybody.set()
        assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [text * 256 for text in "abcd"]
    assert model.most_together == 4


def test_an_answer_that_is_given_up_is_cancelled_and_others_go_on(serve: Serve) -> None:
    steps = threading.Semaphore(3)
    model = Echo(steps.acquire)
    address, body = serve(model), {**asked("x"), "stream": True, "max_tokens": 100_000}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        assert '"content": "x"' in next(response.iter_lines())
    while not model.requests[0].cancelled.wait(0.01):
        steps.release()
    assert model.requests[0].reason is None
    steps.release(1000)
    assert httpx.post(f"{address}/v1/chat/completions", json=asked("y")).json()["usage"]["completion_tokens"] == 256


@pytest.mark.parametrize("body", [{}, {"messages": 3}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}])
def test_a_body_that_is_none_is_refused(serve: Serve, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{serve(Echo())}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_what_the_model_refuses_is_an_error_and_no_end(serve: Serve) -> None:
    address = serve(Echo())
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked("refuse"))
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "too long"
    assert httpx.post(f"{address}/v1/chat/completions", json=asked("a")).status_code == 200
    assert httpx.post(f"{address}/v2", json={}).status_code == 404
