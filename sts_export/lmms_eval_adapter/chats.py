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
        PromptError: a part of another kind, such as a video or a sound, or a picture of another type.

    Source: lmms_eval/protocol.py, ``ChatMessages``.
    """
    images: list[ImageSource] = []
    unpacked = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        unpacked.append({"role": message["role"], "content": [_part(part, images) for part in parts]})
    return unpacked, images


def _part(part: Mapping[str, Any], images: list[ImageSource]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind != "image":
        named = _REFUSED.get(str(kind), f"a part of type {short(kind)}")
        raise PromptError(f"the messages hold {named}, and a bundle takes text and pictures alone; choose another task")
    source = part.get("url")
    if not isinstance(source, (Image, str, Path, bytes)):
        raise PromptError(f"a picture is a PIL image, a path or bytes, not {short(source)}; correct the task's doc_to_visual")
    images.append(source)
    return {"type": "image"}
