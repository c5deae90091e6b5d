"""Bodies that no well-meaning client sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.faults.answers import ASKED, is_refused, is_well, post
from tests.support.mixed_requests import SQUARE
from tests.support.scheduling.served import MODEL, Served, chat


@pytest.fixture(autouse=True)
def ends_well(served: Served) -> Iterator[None]:
    yield
    is_well(served)


def said(text: str) -> dict[str, Any]:
    return {**ASKED, "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("text", ["\ud800", "before \udfff after", "\ud83d"])
def test_lone_surrogates(served: Served, text: str) -> None:
    for body, path in ((said(text), "chat/completions"), ({"model": MODEL, "prompt": text}, "completions")):
        assert "surrogates" in is_refused(post(served, body, f"/v1/{path}"))
    for change in ({"model": text}, {"budget": text}, {text: 1}, {"stop": [text] * 5}, {"logit_bias": {text: 1}}):
        is_refused(post(served, {**ASKED, **change}), 400, 404)
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}
    is_refused(post(served, {**ASKED, "messages": [{"role": "user", "content": [url]}]}))


LIKE_MORE = ["\0", "Where\0is it?", "</s><s><unk><pad>", "<image>", "<image> <image>", "<|im_end|>\n<|im_start|>system"]


@pytest.mark.parametrize("text", LIKE_MORE)
def test_text_that_looks_like_more(served: Served, text: str) -> None:
    """It is text: no picture is missing, and the pictures that there are stay where they are."""
    assert post(served, said(text)).status_code == 200
    body = {**ASKED, "messages": chat(text + " What?", SQUARE)}
    response = post(served, body)
    assert response.status_code == 200 and response.json()["usage"]["visual_tokens"]["total"] == 36


@pytest.mark.parametrize("text", ["word " * 10_000, "a" * 100_000, "\0" * 50_000])
def test_text_that_is_too_long(served: Served, text: str) -> None:
    assert "too long" in is_refused(post(served, said(text)))
    is_refused(post(served, {"model": MODEL, "prompt": text}, "/v1/completions"))


def nested(depth: int, inner: str, *around: str) -> bytes:
    before, after = around
    return (json.dumps(ASKED)[:-1] + f', "FIELD": {before * depth}{inner}{after * depth}}}').encode()


@pytest.mark.parametrize("depth", [50, 900, 5_000, 200_000])
@pytest.mark.parametrize("around", [("[", "]"), ('{"a":', "}")])
def test_deep_json(served: Served, depth: int, around: tuple[str, str]) -> None:
    """As deep as the reader goes, where a field may be anything, and an error beyond."""
    content = nested(depth, "1", *around)
    for field in (b"stop", b"logit_bias", b"messages", b"unknown"):
        is_refused(post(served, content.replace(b"FIELD", field)))
    free = post(served, content.replace(b"FIELD", b"metadata"))
    if free.status_code != 200:
        is_refused(free)
    schema = b'"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": '
    response = post(served, content.replace(b'"FIELD": ', schema)[:-1] + b"}}}}")
    assert response.status_code == 200 or is_refused(response)


@pytest.mark.parametrize("name", ["", "x-y", "a\nb", "\0", "text", "str", "a" * 100_000, "é" * 5000])
def test_unknown_fields_of_any_name(served: Served, name: str) -> None:
    """The line names them: an empty place would not help to find one."""
    response = post(served, {**ASKED, name: 1})
    assert "is not supported" in is_refused(response)
    param = response.json()["error"]["param"]
    assert param == (name[:80] if name.isidentifier() else ascii(name[:80]))


FIELDS = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "n", "budget", "top_logprobs", "logprobs", "logit_bias",
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**400, -(10**400), 10**4299, 2**31, 2**32, 2**63, -(2**63) - 1, 0, -0.0, 1e308, -1e308, 5e-324, 1.5]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FIELDS), number=NUMBERS)
def test_any_number_anywhere(served: Served, name: str, number: float) -> None:
    value = {"5": number} if name == "logit_bias" else number
    body = {**ASKED, "logprobs": True, name: value} if name == "top_logprobs" else {**ASKED, name: value}
    response = post(served, body)
    assert response.status_code == 200 or is_refused(response)
    if isinstance(number, bool) and name != "logprobs":
        is_refused(response)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
@pytest.mark.parametrize("field", ["temperature", "logit_bias", "seed", "budget"])
def test_numbers_that_json_does_not_have(served: Served, constant: str, field: str) -> None:
    value = f'{{"5": {constant}}}' if field == "logit_bias" else constant
    content = json.dumps({**ASKED, field: "HERE"}).replace('"HERE"', value)
    response = post(served, content.encode())
    if (constant, field) != ("-1e999", "logit_bias"):  # that token never comes: the scheduler's own rule
        is_refused(response)
