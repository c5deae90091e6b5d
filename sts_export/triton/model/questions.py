"""One row of a request's tensors -> the body of a chat request, as the OpenAI-compatible server takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sts_export.errors import PromptError, RequestError
from sts_export.requests.messages import RawText
from sts_export.serving.api.protocol import ChatRequest
from sts_export.serving.problems import Problem, ProblemError, problem_of_body
from sts_export.triton.tensors import RETURNS, SETTINGS

Row = Mapping[str, Sequence[Any]]  # name of a tensor -> its values: bytes, bool, int or float
_FROM_TENSOR = "data:,"  # stands for the URL of a picture that has none
# Arguments of ``Pipeline.prepare`` -> tensors that they come from, where these have other names.
_RENAMED = {"max_new_tokens": "max_tokens", "keep": "budget", "images": "image", "logprobs": "top_logprobs"}
_OWN = ("prompt", "grammar")  # which have no tensor of one name
_NEVER = ("model", "messages", "stream", "stream_options", "return_kept", "logprobs")
_NUMBERS = {
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "n",
}  # fmt: skip
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Returns:
    """Which outputs are wanted: the inputs ``return_*``."""

    finish_reason: bool = True
    num_input_tokens: bool = True
    num_output_tokens: bool = True
    visual_tokens: bool = True
    cumulative_logprob: bool = False
    logprobs: bool = False
    kept: bool = False
    timings: bool = False


@dataclass(frozen=True)
class Question:
    """What one row asks for.

    Args:
        prompt: instead of the body's messages; None where these were given.
        pictures: in the order of their places: values of ``image``, or URLs.
        before: text that comes before the answer.
    """

    body: ChatRequest
    prompt: str | RawText | None
    pictures: tuple[bytes | str, ...]
    stream: bool
    returns: Returns
    before: str = ""

    def name_of(self, argument: str) -> str | None:
        """Of the tensor, or of the key in sampling_parameters, that an argument of ``Pipeline.prepare`` comes from."""
        if argument == "prompt":
            return "messages" if self.prompt is None else "text_input"
        if argument == "grammar":
            return "response_format"
        name = _RENAMED.get(argument, argument)
        return name if name in _NUMBERS or name in {"budget", "image", "stop", "ignore_eos", "logit_bias"} else None


def question(row: Row, parameters: Mapping[str, Any]) -> Question:
    """Of one row.

    Args:
        parameters: of the request: other settings, as ``sampling_parameters`` has them.

    Raises:
        ProblemError: the body is none.
        RequestError: what is asked for contradicts itself, or is no text or JSON.
    """
    pictures: tuple[bytes | str, ...] = (
        *(value for value in row.get("image", ()) if value),
        *(_text("image_url", value) for value in row.get("image_url", ()) if value),
    )
    text, chat = _optional_text(row, "text_input"), _optional_text(row, "messages")
    if (text is None) == (chat is None):
        raise RequestError("give text_input or messages, one of them")
    returns = _returns(row)
    body: dict[str, Any] = {"model": "", **_settings(row, parameters, with_logprobs=returns)}
    has_template = _flag(row, "chat_template", True)
    prompt: str | RawText | None = None
    if chat is not None:
        if not has_template:
            raise RequestError("messages need the chat template; leave chat_template out, or give text_input")
        body["messages"], pictures = _placed(_json("messages", chat), pictures)
    else:
        assert text is not None
        prompt = text if has_template else RawText(text)
        body["messages"] = [{"role": "user", "content": text}]
    without_input = _flag(row, "exclude_input_in_output", True)
    if not without_input and text is None:
        raise RequestError("exclude_input_in_output is about text_input; leave it out with messages")
    checked = _body(body)
    before = "" if without_input else str(text)
    return Question(checked, prompt, pictures, _flag(row, "stream", False), returns, before)


def _body(body: dict[str, Any]) -> ChatRequest:
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise ProblemError(problem_of_body(error, body)) from None


def _settings(row: Row, parameters: Mapping[str, Any], *, with_logprobs: Returns) -> dict[str, Any]:
    """Fields of the body from their own tensors and from ``sampling_parameters``, each from one of them."""
    found: dict[str, Any] = {}
    for tensor in SETTINGS:
        if values := row.get(tensor.name):
            found[tensor.name] = [_value(tensor.name, one) for one in values] if tensor.is_list else _one(tensor.name, values)
    given = _optional_text(row, "sampling_parameters")
    others = {} if given is None else _object("sampling_parameters", _json("sampling_parameters", given))
    for source, named in (("parameters of the request", parameters), ("sampling_parameters", others)):
        for name, value in named.items():
            if name in found:
                raise RequestError(f"{name} is given twice, in {source} too; leave one of them out")
            if name in _NEVER and name != "logprobs":
                raise RequestError(f"{name} is no sampling parameter; give it as a tensor or leave it out")
            found[name] = _from_text(name, value)
    most = found.pop("logprobs", None)  # vLLM's: a number
    if isinstance(most, bool):
        found["logprobs"] = most
    elif most is not None:
        found.update(logprobs=True, top_logprobs=found.get("top_logprobs", most))
    if with_logprobs.logprobs or with_logprobs.cumulative_logprob:
        found["logprobs"] = True
    return found


def _from_text(name: str, value: Any) -> Any:
    """Clients of other backends write numbers and truth values as strings."""
    if not isinstance(value, str):
        return value
    if name == "ignore_eos":
        return _WORDS.get(value.lower(), value)
    if name in _NUMBERS:
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _placed(messages: Any, given: Sequence[bytes | str]) -> tuple[Any, tuple[bytes | str, ...]]:
    """Messages whose parts ``{"type": "image"}`` are ``image_url`` parts, as the body has them, each for the next one given.

    Returns them, and all pictures in the order of their places, those of ``image_url`` parts among them.
    """
    rest = iter(given)
    found: list[Any] = []

    def placed(part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
            return part
        if part["type"] == "image_url":
            found.append(part["image_url"].get("url") if isinstance(part.get("image_url"), dict) else None)
            return part
        picture = next(rest, None)
        if picture is None:
            raise PromptError(f"messages have more places for images than the {len(given)} that were given; give as many")
        found.append(picture)
        more = {key: value for key, value in part.items() if key != "type"}
        return {"type": "image_url", "image_url": {"url": _FROM_TENSOR}, **more}

    def message(one: Any) -> Any:
        if not isinstance(one, dict) or not isinstance(one.get("content"), list):
            return one
        return {**one, "content": [placed(part) for part in one["content"]]}

    if not isinstance(messages, list):
        return messages, ()  # refused by the body
    turns = [message(one) for one in messages]
    if (left := sum(1 for _ in rest)) > 0:
        raise PromptError(
            f'{left} of {len(given)} images have no place in the messages; write {{"type": "image"}} for each, '
            "or give text_input"
        )
    return turns, tuple(found)  # what is no text among them is refused by the body


def _returns(row: Row) -> Returns:
    usual = Returns()
    names = [tensor.name.removeprefix("return_") for tensor in RETURNS]
    return Returns(**{name: _flag(row, f"return_{name}", getattr(usual, name)) for name in names})


def _flag(row: Row, name: str, usual: bool) -> bool:
    values = row.get(name)
    return usual if not values else bool(values[0])


def _one(name: str, values: Sequence[Any]) -> Any:
    return _value(name, values[0])


def _value(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return _text(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number, not {value}")
    return value


def _optional_text(row: Row, name: str) -> str | None:
    values = row.get(name)
    return None if not values else _text(name, values[0])


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name} is no UTF-8; send text") from None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(f"{name} is no JSON; correct it") from None


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProblemError(Problem(400, f"{name} is a JSON object, not a {type(value).__name__}; correct it", name))
    return value
