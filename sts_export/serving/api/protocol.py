"""Bodies of requests: OpenAI's API reference, and fields that vLLM and this server add to it.

A field that is not known might change the answer, and is refused: no answer is better than another one than was asked for.
Values that ask for nothing are taken even of fields that are not supported: clients send them unasked.
Lists end at their first wrong member and have a longest length: a small body must not make millions of errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

Number = StrictInt | StrictFloat
MOST_STOPS = 4
MOST_PARTS = 4096  # of all messages together, a text counting as one
MOST_BIASES = 4096


def _few_biases(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MOST_BIASES:
        raise PydanticCustomError("too_long", f"at most {MOST_BIASES} tokens may have one, not {len(given)}")
    return given


def _few_parts(given: Any) -> Any:
    if isinstance(given, list):
        contents = (message.get("content") for message in given if isinstance(message, dict))
        parts = len(given) + sum(len(content) - 1 for content in contents if isinstance(content, list) and content)
        if parts > MOST_PARTS:
            raise PydanticCustomError("too_long", f"at most {MOST_PARTS} texts and pictures are taken, not {parts}")
    return given


def _describe_unasked(schema: dict[str, Any], model: type[Any]) -> None:
    for name, values in model.unasked.items():
        schema["properties"][name] = {"enum": list(values)}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_describe_unasked)
    # Fields that are not supported -> their values that ask for nothing.
    unasked: ClassVar[Mapping[str, Sequence[Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """In OpenAI's API null is what a field has that is not given: clients send answers back as they got them.

        Of unknown fields that ask for something one is left to be refused.
        """
        if not isinstance(given, dict):
            return given
        there = {name: value for name, value in given.items() if value is not None and not cls._is_unasked(name, value)}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in there if name not in known), None)
        return {name: value for name, value in there.items() if name in known or name == unknown}

    @classmethod
    def _is_unasked(cls, name: str, value: Any) -> bool:
        """True is no 1 here, and false no 0."""
        return any(type(value) is type(nothing) and value == nothing for nothing in cls.unasked.get(name, ()))


class ImageUrl(_Body):
    """Where a picture is; ``detail`` is a budget: ``low`` is half of what the bundle was exported for."""

    url: StrictStr
    detail: Literal["low", "high", "auto"] = "auto"


class TextPart(_Body):
    """Text of a message."""

    type: Literal["text"]
    text: StrictStr


class ImagePart(_Body):
    """A picture, at its place between the texts of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Body):
    """A turn of a chat; ``developer`` is another word for ``system``, and ``name`` is not told to the model."""

    unasked = {"tool_calls": [[]], "annotations": [[]]}

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[Part], Field(fail_fast=True)]
    name: StrictStr | None = None


class StreamOptions(_Body):
    """What streams have beside the answer."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class Generated(_Body, ABC):
    """What chats and plain texts have in common."""

    unasked = {"best_of": [1]}
    # Arguments of ``Pipeline.prepare`` -> fields that they come from, where these have other names.
    renamed: ClassVar[Mapping[str, str]] = {"max_new_tokens": "max_tokens", "images": "prompt", "keep": "budget"}

    model: StrictStr
    max_tokens: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    seed: StrictInt | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: Annotated[dict[str, Number] | None, BeforeValidator(_few_biases)] = None
    n: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    # As vLLM has them:
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    ignore_eos: StrictBool = False
    # This server's own:
    budget: StrictStr | Number | None = None
    # Of no influence on the answer:
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    def name_of(self, argument: str) -> str | None:
        """Of the field that an argument of ``Pipeline.prepare`` comes from; None where it comes from none."""
        name = self.renamed.get(argument, argument)
        return name if name in type(self).model_fields else None

    @property
    @abstractmethod
    def said(self) -> list[str]:
        """Texts of the prompt."""

    @property
    def pictures(self) -> list[str]:
        """URLs of the prompt's pictures."""
        return []


class TextFormat(_Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(_Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Body):
    """A JSON schema; it is always followed strictly."""

    name: StrictStr
    schema_: dict[str, Any] = Field(alias="schema")
    description: StrictStr | None = None
    strict: StrictBool | None = None


class SchemaFormat(_Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(Generated):
    """Body of ``POST /v1/chat/completions``."""

    unasked = {
        **Generated.unasked,
        "tools": [[]],
        "tool_choice": ["none", "auto"],
        "parallel_tool_calls": [True, False],
        "functions": [[]],
        "function_call": ["none", "auto"],
        "modalities": [["text"]],
        "reasoning_effort": ["none"],
        "verbosity": ["medium"],
    }
    renamed = {
        **Generated.renamed,
        "max_new_tokens": "max_completion_tokens",
        "prompt": "messages",
        "images": "messages",
        "logprobs": "top_logprobs",
        "grammar": "response_format",
    }

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True), BeforeValidator(_few_parts)]
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool = False
    top_logprobs: StrictInt | None = None
    response_format: ResponseFormat | None = None
    return_kept: StrictBool = False

    def name_of(self, argument: str) -> str | None:
        if argument == "max_new_tokens" and self.max_tokens is not None:
            return "max_tokens"
        return super().name_of(argument)

    @property
    def said(self) -> list[str]:
        """Texts of its messages."""
        contents = [message.content for message in self.messages]
        listed = [[TextPart(type="text", text=one)] if isinstance(one, str) else one for one in contents]
        return [part.text for parts in listed for part in parts if isinstance(part, TextPart)]

    @property
    def pictures(self) -> list[str]:
        parts = [part for message in self.messages if not isinstance(message.content, str) for part in message.content]
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class CompletionRequest(Generated):
    """Body of ``POST /v1/completions``: a text that goes on, without a chat template and without pictures."""

    unasked = {**Generated.unasked, "echo": [False], "suffix": [""]}

    prompt: StrictStr
    logprobs: StrictInt | None = None

    @property
    def said(self) -> list[str]:
        """Its text."""
        return [self.prompt]
