"""Rows of tensors as bodies of chat requests."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.errors import RequestError
from sts_export.requests.messages import RawText
from sts_export.serving.problems import ProblemError
from sts_export.triton.model.incoming import parameters_of, values_of
from sts_export.triton.model.questions import Question, Returns, question
from sts_export.triton.tensors import INPUTS, RETURNS, SETTINGS

TEXT = {"text_input": [b"What?"]}
PLACE = {"type": "image"}


def asked(row: dict[str, list[Any]], **parameters: Any) -> Question:
    return question({**TEXT, **row}, parameters)


def test_usual() -> None:
    found = asked({})
    assert (found.prompt, found.pictures, found.stream, found.returns, found.before) == ("What?", (), False, Returns(), "")
    assert found.body.max_tokens is None and found.body.logprobs is False


def test_every_setting_has_a_field_of_the_body() -> None:
    values = {"INT32": 3, "INT64": 3, "FP32": 0.5, "BOOL": True, "STRING": b"12"}
    for tensor in SETTINGS:
        value = values[tensor.kind.removeprefix("TYPE_")]
        found = getattr(asked({tensor.name: [value]}).body, tensor.name)
        expected: Any = value.decode() if isinstance(value, bytes) else value
        assert found == ([expected] if tensor.is_list else expected)


def test_every_return_is_a_field() -> None:
    for tensor in RETURNS:
        for value in (False, True):
            assert getattr(asked({tensor.name: [value]}).returns, tensor.name.removeprefix("return_")) is value


def test_names_of_inputs_are_different() -> None:
    assert len({tensor.name for tensor in INPUTS}) == len(INPUTS)


def test_pictures_before_urls_and_empty_ones_left_out() -> None:
    found = asked({"image": [b"one", b"", b"two"], "image_url": [b"https://a/b.png", b""]})
    assert found.pictures == (b"one", b"two", "https://a/b.png")


def test_places_of_a_chat() -> None:
    """Values go to parts without a URL, in order; the order of all is that of the parts."""
    own = {"type": "image_url", "image_url": {"url": "data:own"}}
    turns = [
        {"role": "user", "content": [PLACE, own, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [PLACE, {"type": "text", "text": "c"}]},
    ]
    row = {"messages": [json.dumps(turns).encode()], "image": [b"1"], "image_url": [b"https://a/2"]}
    found = question(row, {})
    assert found.pictures == (b"1", "data:own", "https://a/2") and found.prompt is None
    assert len(found.body.pictures) == 3 and found.body.said == ["a", "b", "c"]


def test_prompt_without_template() -> None:
    found = asked({"chat_template": [False]})
    assert isinstance(found.prompt, RawText) and found.prompt == "What?"
    assert found.before == ""
    assert asked({"exclude_input_in_output": [False]}).before == "What?"


def test_sampling_parameters() -> None:
    """Numbers and truth values may be strings, as the vLLM backend's clients write them."""
    given = {"temperature": "0.1", "top_k": "5", "ignore_eos": "True", "max_tokens": 7, "stop": ["a"], "logprobs": "3"}
    body = asked({"sampling_parameters": [json.dumps(given).encode()]}).body
    assert (body.temperature, body.top_k, body.ignore_eos, body.max_tokens, body.stop) == (0.1, 5, True, 7, ["a"])
    assert (body.logprobs, body.top_logprobs) == (True, 3)
    assert asked({}, seed=3).body.seed == 3
    assert asked({"return_cumulative_logprob": [True]}).body.logprobs is True


@pytest.mark.parametrize("row", [{"temperature": [0.1]}, {"sampling_parameters": [b'{"temperature": 1}']}])
def test_given_twice(row: dict[str, list[Any]]) -> None:
    with pytest.raises(RequestError, match="temperature is given twice"):
        asked({**row}, temperature=0.5) if "temperature" in row else asked({**row, "temperature": [0.2]})


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("max_new_tokens", "max_tokens"),
        ("prompt", "text_input"),
        ("images", "image"),
        ("grammar", "response_format"),
        ("x", None),
    ],
)
def test_names_in_errors(argument: str, name: str | None) -> None:
    assert asked({}).name_of(argument) == name


@given(st.text(max_size=40))
def test_any_text_of_a_setting_is_taken_or_refused_in_one_line(text: str) -> None:
    for name in ("sampling_parameters", "messages", "budget"):
        row: dict[str, list[Any]] = {} if name == "messages" else dict(TEXT)
        row[name] = [text.encode()]
        try:
            question(row, {})
        except RequestError as error:
            assert "\n" not in str(error)
        except ProblemError as error:
            assert error.problem.status == 400 and "\n" not in error.problem.message


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_floats_have_the_digits_of_float32(number: float) -> None:
    (found,) = values_of(np.array([[number]], np.float32))
    assert np.float32(found) == np.float32(number)
    assert len(repr(found)) <= len(repr(float(np.float32(number))))


def test_values() -> None:
    assert values_of(np.array([0.7], np.float32)) == [0.7]
    assert values_of(np.array([b"\x00a", "b"], np.object_)) == [b"\x00a", b"b"]
    assert values_of(np.array([[True]], np.bool_)) == [True]
    assert values_of(np.zeros((1, 0), np.int32)) == []


def test_parameters_of_triton_are_not_settings() -> None:
    class Request:
        def parameters(self) -> str:
            own = {"triton_enable_empty_final_response": True, "sequence_id": 1, "timeout": 5, "id": "7"}
            return json.dumps({**own, "seed": 2, "timeouts": 1})

    assert parameters_of(Request()) == {"seed": 2, "timeouts": 1}
