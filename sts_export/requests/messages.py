"""Chat messages as users write them: from a file, and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sts_export.errors import PromptError
from sts_export.media.processor import one_line
from sts_export.paths import user_path

Messages = Sequence[Mapping[str, Any]]
# Where transformers' chat templates and others look for the picture of an image part.
_PICTURES = ("image", "path", "url", "base64", "image_url")


class PlacedText(str):
    """Text of a message in which image tokens are places for images."""


class RawText(str):
    """A prompt that the model gets as it is, without a chat template; its image tokens are places for images."""


def read_messages(file: str | Path) -> Messages:
    """A chat from a JSON file in UTF-8, UTF-16 or UTF-32: a list of messages as :meth:`ChatTokenizer.pieces` takes them.

    Raises:
        PromptError: not readable, not JSON, or no list.
    """
    try:
        content = json.loads(user_path(file).read_bytes())  # bytes: it finds out about UTF-8, UTF-16, UTF-32 and a BOM
    except FileNotFoundError:
        raise PromptError(f"{file} does not exist; give a list of messages in a JSON file") from None
    except OSError as error:
        raise PromptError(f"{file} cannot be read ({error.strerror}); give a list of messages in a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{file} is not readable JSON ({one_line(error)}); give a list of messages") from None
    if not isinstance(content, list):
        raise PromptError(f'{file} is no list; give a list of messages: [{{"role": ..., "content": ...}}, ...]')
    return content


def checked_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages whose content is always a list of text and image parts."""
    if isinstance(messages, (bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"a prompt is text or a list of messages, not {type(messages).__name__}; give one of them")
    if not messages:
        raise PromptError("the list of messages is empty; give at least one user message")
    checked = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise PromptError(f'message {number} must be {{"role": ..., "content": ...}}, not {_short(message)}; correct it')
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, Sequence) or not all(_is_part(part) for part in parts):
            raise PromptError(
                f'the content of message {number} must be text or a list of {{"type": "text", "text": ...}} and '
                f'{{"type": "image"}}, not {_short(content)}; correct it'
            )
        named = next((key for part in parts if part["type"] == "image" for key in _PICTURES if part.get(key)), None)
        if named is not None:
            raise PromptError(
                f'message {number} names a picture ("{named}"), and pictures come apart from messages; leave '
                '{"type": "image"} and give the file (--image, or images= in Python)'
            )
        checked.append({**message, "content": list(parts)})
    return checked


def _is_part(part: object) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def strings(value: object, image_token: str) -> Iterator[str]:
    """All strings within messages, of those with places what is around them."""
    if isinstance(value, PlacedText):
        yield from value.split(image_token)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item, image_token)
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from strings(item, image_token)
