"""What the demo task asks of its questions; lmms-eval loads the copy beside the task's YAML file."""

from __future__ import annotations

from typing import Any

from PIL import Image


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a question, in their order."""
    return [Image.open(file).convert("RGB") for file in doc["pictures"]]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """An answer is right if it equals the true one."""
    return {"right": float(results[0].strip() == doc["answer"])}
