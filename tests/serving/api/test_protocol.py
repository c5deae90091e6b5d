"""Bodies are checked in a time that a client cannot stretch: errors are few, whatever is wrong how often."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from sts_export.serving.api.protocol import MOST_BIASES, MOST_PARTS, ChatRequest, CompletionRequest
from sts_export.serving.problems import problem_of_body
from tests.support.scheduling.gates import PATIENCE
from tests.support.scheduling.served import MODEL, Served

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Where?"}]}
MANY = 100_000


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "change, param",
    [
        ({"messages": [1] * MANY}, "messages"),
        ({"messages": [1] * MOST_PARTS}, "messages.0"),
        ({"messages": said("a") * (MOST_PARTS + 1)}, "messages"),
        ({"messages": said([1] * MANY)}, "messages"),
        ({"messages": said([1] * MOST_PARTS)}, "messages.0.content.0"),
        ({"messages": said([{"type": "text", "text": "a"}] * (MOST_PARTS // 2)) * 3}, "messages"),
        ({"messages": said([{"type": "text", "text": 1}] * 9)}, "messages.0.content.0.text"),
        ({"stop": [1] * MANY}, "stop.0"),
        ({"stop": ["a"] * MANY}, "stop"),
        ({"logit_bias": {str(token): "x" for token in range(MANY)}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(MOST_BIASES + 1)}}, "logit_bias"),
        ({f"key{number}": 1 for number in range(MANY)}, "key0"),
        ({"messages": [{**said("a")[0], **{f"key{number}": 1 for number in range(MANY)}}]}, "messages.0.key0"),
    ],
)
def test_what_is_wrong_very_often(change: dict[str, Any], param: str) -> None:
    body = {**ASKED, **change}
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate(body)
    assert error.value.error_count() < 10
    assert problem_of_body(error.value, body).param == param


def test_as_much_as_may_be() -> None:
    body = ChatRequest.model_validate({**ASKED, "messages": said([{"type": "text", "text": "a"}] * MOST_PARTS)})
    assert len(body.said) == MOST_PARTS
    biases = {str(token): 1 for token in range(MOST_BIASES)}
    assert ChatRequest.model_validate({**ASKED, "logit_bias": biases, "stop": ["a"] * 4}).logit_bias == biases


UNASKED: list[tuple[str, Any]] = [
    ("tools", []),
    ("tool_choice", "none"),
    ("tool_choice", "auto"),
    ("parallel_tool_calls", True),
    ("functions", []),
    ("function_call", "auto"),
    ("modalities", ["text"]),
    ("best_of", 1),
    ("reasoning_effort", "none"),
    ("verbosity", "medium"),
    ("prediction", None),
]
ASKED_FOR: list[tuple[str, Any]] = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tools", {}),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("parallel_tool_calls", 1),
    ("modalities", ["text", "audio"]),
    ("best_of", 2),
    ("best_of", True),
    ("reasoning_effort", "high"),
    ("verbosity", "low"),
    ("prediction", {"type": "content", "content": "a"}),
    ("web_search_options", {}),
]


@pytest.mark.parametrize("name, value", UNASKED)
def test_what_asks_for_nothing_is_taken(name: str, value: Any) -> None:
    assert ChatRequest.model_validate({**ASKED, name: value}) == ChatRequest.model_validate(ASKED)
    assert value is None or value in ChatRequest.model_json_schema()["properties"][name]["enum"]


def test_what_asks_for_nothing_of_texts_and_messages() -> None:
    asked = {"model": MODEL, "prompt": "Where"}
    unasked = {"echo": False, "suffix": "", "best_of": 1}
    assert CompletionRequest.model_validate({**asked, **unasked}) == CompletionRequest.model_validate(asked)
    for name, value in (("echo", True), ("echo", 0), ("suffix", "here"), ("tools", [])):
        with pytest.raises(ValidationError, match=name):
            CompletionRequest.model_validate({**asked, name: value})
    message: dict[str, Any] = {"role": "assistant", "content": "There", "tool_calls": [], "annotations": [], "refusal": None}
    assert ChatRequest.model_validate({**ASKED, "messages": [message]}).messages[0].content == "There"


@pytest.mark.parametrize("name, value", ASKED_FOR)
def test_what_asks_for_something_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate({**ASKED, name: value})
    problem = problem_of_body(error.value, {**ASKED, name: value})
    assert problem.param == name and "is not supported" in problem.message and problem.code == "unknown_parameter"


def test_a_body_of_very_many_values(served: Served) -> None:
    """It is not even read: the event loop would wait for that.  Long texts and pictures are few values."""
    url, headers = f"{served.url}/v1/chat/completions", {"content-type": "application/json"}
    for value in ("[]", "{}", "1"):
        content = json.dumps(ASKED)[:-1] + f', "metadata": [{", ".join([value] * 300_000)}]}}'
        response = httpx.post(url, content=content, headers=headers, timeout=PATIENCE)
        assert response.status_code == 400 and "values" in response.json()["error"]["message"]
    content = json.dumps({**ASKED, "max_tokens": 1, "metadata": "a" * 5_000_000})
    assert httpx.post(url, content=content, headers=headers, timeout=PATIENCE).status_code == 200
