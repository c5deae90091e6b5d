"""OpenAI's chat completions: a body -> a request; events -> an answer."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.serving.openvino.messages import Ask, End

_DATA = "base64,"


def ask_of(number: int, body: dict[str, Any]) -> Ask:
    """Greedy, whatever ``temperature`` says.  Fields that are not known are left alone.

    Raises:
        KeyError, TypeError, ValueError, OSError: the body, or a picture in it, is no such thing.
    """
    history, pictures = [], list[NDArray[np.uint8]]()
    for message in body["messages"]:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = ""
        for part in parts:
            if part["type"] == "text":
                text += part["text"]
            else:
                text += f"<ov_genai_image_{len(pictures)}>"  # GenAI puts a line break behind it
                pictures.append(_picture(part["image_url"]["url"]))
        history.append({"role": str(message["role"]), "content": text})
    tokens = int(body.get("max_completion_tokens") or body.get("max_tokens") or 256)
    return Ask(number, history, pictures, tokens, bool(body.get("ignore_eos", False)))


def _picture(url: str) -> NDArray[np.uint8]:
    if not url.startswith("data:") or _DATA not in url:
        raise ValueError("a picture is a data URL in base64")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(_DATA)[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def chunk(number: int, model: str, text: str, reason: str | None = None) -> dict[str, Any]:
    """One of a stream."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}
    return {**_head(number, model, "chat.completion.chunk"), "choices": [choice]}


def usage_chunk(end: End, model: str) -> dict[str, Any]:
    """The last one, where ``stream_options`` ask for it."""
    return {**_head(end.number, model, "chat.completion.chunk"), "choices": [], "usage": usage(end)}


def whole(end: End, model: str, text: str) -> dict[str, Any]:
    """An answer that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end.reason}
    return {**_head(end.number, model, "chat.completion"), "choices": [choice], "usage": usage(end)}


def usage(end: End) -> dict[str, int]:
    counts = {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.tokens}
    return {**counts, "total_tokens": end.prompt_tokens + end.tokens}


def _head(number: int, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time()), "model": model}
