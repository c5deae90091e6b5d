"""Chat messages of lmms-eval as a pipeline takes them: messages with places, and the pictures apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from sts_export.errors import PromptError
from sts_export.media.images import ImageSource
from sts_export.requests.messages import Messages
from sts_export.requests.wording import short

_REFUSED = {"video": "a video", "audio": "a sound"}


def unpack(messages: Sequence[Mapping[str, Any]]) -> tuple[Messages, list[ImageSource]]:
    """Messages whose pictures are places, and the pictures in their order.

    Args:
        messages: what a task's ``doc_to_messages`` gives: dicts with ``role`` and ``content``, a list of parts
            ``{"type": "text", "text": ...}`` and ``{"type": "image", "url": ...}`` with a PIL image, path or bytes.

    Raises:
        PromptError: no messages; a part of another kind, such as a video or a sound, or a picture of another type.

    Source: lmms_eval/protocol.py, ``ChatMessages``.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"a chat is a list of messages, not {short(messages)}; correct the task's doc_to_messages")
    images: list[ImageSource] = []
    unpacked = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, (str, list, tuple)):
            raise PromptError(f"a message has a role and a content, not {short(message)}; correct the task's doc_to_messages")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        unpacked.append({"role": message.get("role"), "content": [_part(part, images) for part in parts]})
    return unpacked, images


def _part(part: object, images: list[ImageSource]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "image"):
        named = _REFUSED.get(str(kind), short(part))
        raise PromptError(f"the messages hold {named}, and a bundle takes text and pictures alone; choose another task")
    if kind == "text":
        return {"type": "text", "text": part.get("text")}
    source = part.get("url")
    if not isinstance(source, (Image, str, Path, bytes)):
        raise PromptError(f"a picture is a PIL image, a path or bytes, not {short(source)}; correct the task's doc_to_visual")
    images.append(source)
    return {"type": "image"}
