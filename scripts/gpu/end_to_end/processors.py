"""transformers' processors for pictures, on PIL as the bundle's own: torchvision's resize a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BatchFeature

from sts_export.requests.prompt import ChatTokenizer

_IMAGE = "<|image_pad|>"  # of Qwen2.5-VL


def open_processor(checkpoint: str) -> Callable[..., Any]:
    """Called with ``images`` (one PIL image), ``text`` (with one placeholder) and ``return_tensors``: the model's inputs."""
    config = _config(checkpoint)
    if _is_qwen(config):
        return QwenProcessor(checkpoint, config["image_token_id"])
    processor: Callable[..., Any] = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    return processor


def chat_text(checkpoint: str, prompt: str) -> str:
    """The prompt in the bundle's own template, with one placeholder for the picture."""
    token = _IMAGE if _is_qwen(_config(checkpoint)) else "<image>"
    return ChatTokenizer.open(Path(checkpoint), image_token=token).render(prompt, 1)


def _config(checkpoint: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(checkpoint) / "config.json").read_text())
    return config


def _is_qwen(config: dict[str, Any]) -> bool:
    return str(config["model_type"]).startswith("qwen")


class QwenProcessor:
    """The work of Qwen2_5_VLProcessor for pictures, from its parts: it wants a video processor, which PIL has none of."""

    def __init__(self, checkpoint: str, image_token: int) -> None:
        self._images = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._image_token = image_token

    def __call__(self, images: Any, text: str, return_tensors: str) -> BatchFeature:
        pixels = self._images(images=images, return_tensors=return_tensors)
        count = int(pixels["image_grid_thw"][0].prod()) // self._images.merge_size**2
        ids = self._tokenizer(text.replace(_IMAGE, _IMAGE * count), return_tensors=return_tensors)["input_ids"]
        kinds = (ids == self._image_token).int()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **pixels}
        return BatchFeature(inputs)
