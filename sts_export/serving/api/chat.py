"""The body of a request -> a request of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sts_export.errors import ImageError, RequestError
from sts_export.generation.pipeline import Pipeline
from sts_export.media.images import DEFAULT_MAX_PIXELS, image_pixels
from sts_export.pruning.per_request import Budget, Counts
from sts_export.requests.grammars.grammar import Grammar
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.messages import Messages, RawText
from sts_export.requests.request import Request
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.serving.api.protocol import (
    ChatRequest,
    CompletionRequest,
    Generated,
    ImagePart,
    Message,
    ObjectFormat,
    ResponseFormat,
    SchemaFormat,
    TextPart,
)

# Of all pictures of a request together: a megabyte of PNG may be 300 times as many pixels, and decoding these takes a while.
MOST_PIXELS = 2 * DEFAULT_MAX_PIXELS

PictureReader = Callable[[str], bytes]


def chat_request(
    pipeline: Pipeline, body: ChatRequest, pictures: Sequence[bytes], prompt: str | RawText | None = None
) -> Request:
    """Pictures are decoded here: this takes a while, and is for a thread of its own.

    Args:
        pictures: files of ``body.pictures``, or of ``prompt``.
        prompt: instead of the body's messages.

    Raises:
        RequestError and its children: the body asks for what cannot be had.
    """
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError("give max_completion_tokens or max_tokens, not both", field="max_tokens")
    parts = [part for message in body.messages for part in _parts(message) if isinstance(part, ImagePart)]
    is_low = bool(parts) and all(part.image_url.detail == "low" for part in parts)
    pruning: Mapping[str, Any] = low_budget(pipeline) if is_low and body.budget is None else {"budget": body.budget}
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs belong to logprobs; set logprobs to true, too", field="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    asked: str | Messages = [_message(message) for message in body.messages] if prompt is None else prompt
    own = {"max_new_tokens": most, "logprobs": logprobs, "grammar": _grammar(body.response_format)}
    return _prepare(pipeline, asked, pictures, body, **own, **pruning)


def completion_request(pipeline: Pipeline, body: CompletionRequest) -> Request:
    """Raises as :func:`chat_request`."""
    own: dict[str, Any] = {"budget": body.budget, "logprobs": body.logprobs}
    return _prepare(pipeline, RawText(body.prompt), [], body, max_new_tokens=body.max_tokens, **own)


def low_budget(pipeline: Pipeline) -> Mapping[str, Budget | Counts]:
    """Of pictures whose ``detail`` is ``low``: half of what the bundle was exported for."""
    pruning = pipeline.manifest.pruning
    if pruning.budget is None:
        return {"keep": (max(1, pruning.keep_stage1 // 2), max(1, pruning.keep_stage2 // 2))}
    number, percent = (pruning.budget[:-1], "%") if pruning.budget.endswith("%") else (pruning.budget, "")
    return {"budget": f"{float(number) / 2:g}{percent}"}


def read_pictures(pipeline: Pipeline, urls: Sequence[str], picture: PictureReader, most_bytes: int) -> list[bytes]:
    """Files of pictures.  A URL is short: a small body must neither fill the memory nor be very many requests to others.

    Args:
        picture: URL -> bytes of the file.
        most_bytes: of all files; only the last one may go beyond.

    Raises:
        ImageError: as ``picture`` raises, one is no picture by its header, or there are more of them, more bytes or more
            pixels than may be.
    """
    most = pipeline.manifest.capacities.rows[0]
    if len(urls) > most:
        raise ImageError(f"the prompt is too long: {len(urls)} pictures for {most} cache rows; send far fewer")
    found: list[bytes] = []
    pixels = 0
    for url in urls:
        if sum(map(len, found)) > most_bytes:
            what = f"the first {len(found)} pictures are larger than {most_bytes >> 20} MiB together"
            raise ImageError(f"{what}; send fewer or smaller ones")
        found.append(picture(url))
        pixels += image_pixels(found[-1])
        if pixels > MOST_PIXELS:
            what = f"the first {len(found)} pictures have {pixels} pixels together, more than the {MOST_PIXELS} accepted"
            raise ImageError(f"{what}; send fewer or smaller ones")
    return found


def _prepare(pipeline: Pipeline, prompt: str | Messages, pictures: Sequence[bytes], body: Generated, **own: Any) -> Request:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    return pipeline.prepare(
        prompt,
        list(pictures),
        sampling=_sampling(pipeline, body),
        logits=_logits(body),
        stop=stop,
        ignore_eos=body.ignore_eos,
        **own,
    )


def _sampling(pipeline: Pipeline, body: Generated) -> SamplingConfig:
    """Greedy where nothing is said; what is not given beside others is as the checkpoint has it."""
    given = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "min_p", "seed")}
    if all(given[name] is None for name in ("temperature", "top_p", "top_k", "min_p")):
        return SamplingConfig(seed=body.seed)
    return pipeline.sampling_defaults(**given)


def _logits(body: Generated) -> LogitsConfig:
    return LogitsConfig(
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=None if body.logit_bias is None else {_token(key): bias for key, bias in body.logit_bias.items()},
    )


def _token(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 16):
        raise RequestError(f"logit_bias has token ids as keys, not {key[:40]!r}; correct it", field="logit_bias")
    return int(key)


def _grammar(given: ResponseFormat | None) -> Grammar | None:
    if isinstance(given, SchemaFormat):
        return Grammar.json_schema(given.json_schema.schema_)
    return Grammar.json_object() if isinstance(given, ObjectFormat) else None


def _parts(message: Message) -> Sequence[Any]:
    return () if isinstance(message.content, str) else message.content


def _message(message: Message) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    return {"role": role, "content": [_part(part) for part in message.content]}


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    return {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
