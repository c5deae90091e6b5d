"""Wrong requests: one line each, and the server answers the next one."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.testing.triton.server import Triton
from tests.support.triton.asking import PATIENCE, answer, check_same
from tests.support.triton.home import needs_triton
from tests.support.triton.repositories import MODEL

pytestmark = [needs_triton, pytest.mark.slow]
QUESTION = "What is left?"
PLACE = {"type": "image"}


def chat(*parts: Any) -> str:
    return json.dumps([{"role": "user", "content": list(parts)}])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 4}, "give text_input or messages, one of them"),
    ({"text_input": QUESTION, "messages": chat()}, "give text_input or messages, one of them"),
    ({"text_input": ""}, "the prompt is empty"),
    ({"text_input": b"\xff\xfe"}, "text_input is no UTF-8"),
    ({"text_input": QUESTION, "image": b"\x89PNG\r\n\x1a\nbroken"}, "image"),
    ({"text_input": QUESTION, "image": b"no picture"}, "base64"),
    ({"text_input": QUESTION, "image": base64.b64encode(b"no picture")}, "not an image that can be read"),
    ({"text_input": QUESTION, "image_url": "http://127.0.0.1/cat.png"}, "fetches no pictures"),
    ({"text_input": QUESTION, "image_url": "file:///etc/passwd"}, "this server"),
    ({"text_input": QUESTION, "image_url": "tensor:7"}, "no picture that this server takes"),
    ({"text_input": "a " * 100_000}, "too long"),
    ({"text_input": QUESTION, "max_tokens": 100_000}, "new tokens do not fit"),
    ({"text_input": QUESTION, "max_tokens": 0}, "max_tokens must be at least 1"),
    ({"text_input": QUESTION, "temperature": -1.0}, "temperature must be"),
    ({"text_input": QUESTION, "temperature": float("nan")}, "temperature must be"),
    ({"text_input": QUESTION, "top_p": 1.5}, "top_p must be"),
    ({"text_input": QUESTION, "budget": "many"}, "budget"),
    ({"text_input": QUESTION, "budget": "9999"}, "budget"),
    ({"text_input": QUESTION, "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"text_input": QUESTION, "sampling_parameters": "{"}, "sampling_parameters is no JSON"),
    ({"text_input": QUESTION, "sampling_parameters": "[" * 100_000}, "sampling_parameters is no JSON"),
    ({"text_input": QUESTION, "sampling_parameters": "[]"}, "sampling_parameters is a JSON object, not a list"),
    ({"text_input": QUESTION, "sampling_parameters": '{"beams": 4}'}, "beams is not supported"),
    ({"text_input": QUESTION, "sampling_parameters": '{"stream": true}'}, "stream is no sampling parameter"),
    ({"text_input": QUESTION, "sampling_parameters": '{"model": "x"}'}, "model is no sampling parameter"),
    ({"text_input": QUESTION, "max_tokens": 3, "sampling_parameters": '{"max_tokens": 4}'}, "max_tokens is given twice"),
    ({"text_input": QUESTION, "return_logprobs": True, "sampling_parameters": '{"logprobs": 21}'}, "top_logprobs must be"),
    ({"messages": "{"}, "messages is no JSON"),
    ({"messages": "[]"}, "messages"),
    ({"messages": '{"role": "user"}'}, "messages"),
    ({"messages": '[{"role": "wizard", "content": "a"}]'}, "messages.0.role"),
    ({"messages": chat(PLACE, {"type": "text", "text": "a"})}, "more places for images than the 0"),
    ({"messages": chat({"type": "text", "text": "a"}), "image": b"x"}, "1 of 1 images have no place"),
    ({"messages": chat({"type": "text", "text": "a"}), "chat_template": False}, "messages need the chat template"),
    ({"messages": chat({"type": "text", "text": "a"}), "exclude_input_in_output": False}, "is about text_input"),
    ({"text_input": QUESTION, "image": b"x", "chat_template": False}, "base64 is damaged"),
]


@pytest.mark.parametrize(("inputs", "line"), WRONG)
def test_one_line(triton: Triton, inputs: dict[str, Any], line: str) -> None:
    found = answer(triton.grpc, MODEL, **inputs)
    assert found.error is not None and line in found.error
    assert "\n" not in found.error and "Traceback" not in found.error
    assert len(found.error) < 1100 and not found.responses


def test_row_of_a_batch(triton: Triton) -> None:
    found = answer(triton.grpc, MODEL, rows=2, text_input=[QUESTION, ""])
    assert found.error is not None and found.error.startswith("row 1 of the batch: the prompt is empty")
    streamed = answer(triton.grpc, MODEL, rows=2, text_input=[QUESTION, QUESTION], stream=[True, True])
    assert streamed.error is not None and "stream is for one row" in streamed.error


def test_statuses(triton: Triton, scenes: list[bytes]) -> None:
    """Of HTTP."""

    def post(how: str, **body: Any) -> httpx.Response:
        return httpx.post(f"http://{triton.http}/v2/models/{MODEL}/{how}", json=body, timeout=PATIENCE, trust_env=False)

    assert post("generate", text_input="").status_code == 400
    assert post("generate", text_input=QUESTION, parameters={"beams": 2}).json()["error"].startswith("beams is not supported")
    assert post("generate", text_input=QUESTION, unknown=3).status_code == 400
    streamed = post("generate_stream", text_input="", stream=True)
    assert "the prompt is empty" in streamed.text


def test_types_and_shapes(triton: Triton) -> None:
    """Triton itself refuses other ones than config.pbtxt has, and rows that differ."""
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    with InferenceServerClient(triton.grpc) as client:
        for array, kind in ((np.array([[1]], np.int32), "INT32"), (np.array([[b"a", b"b"]], np.object_), "BYTES")):
            tensor = InferInput("text_input", array.shape, kind)
            tensor.set_data_from_numpy(array)
            with pytest.raises(InferenceServerException):
                client.infer(MODEL, [tensor])


def test_it_goes_on(triton: Triton, pipeline: Pipeline, scenes: list[bytes]) -> None:
    check_same(answer(triton.grpc, MODEL, text_input=QUESTION, image=scenes[0]), pipeline.generate(QUESTION, scenes[0]))
