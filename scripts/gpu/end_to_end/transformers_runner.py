"""transformers on the weights of a bundle, unpruned."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, DynamicCache

from scripts.gpu.end_to_end.processors import chat_text, open_processor
from scripts.gpu.end_to_end.task import Task


class TransformersRunner:
    """AutoModelForImageTextToText with its default attention on a GPU and a CPU, sdpa; unpruned.

    No synchronization between decode steps: the most favourable way to run it without compiling it.
    """

    def __init__(self, checkpoint: str, task: Task) -> None:
        if task.device == "cpu":
            torch.set_num_threads(1)  # toys gain nothing from more, and lose where others use the machine, too
        self._task = task
        dtype = getattr(torch, task.dtype)
        # Straight to the device: through the host's memory, 14 GB take their time.
        self._model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=dtype, attn_implementation="sdpa", device_map=task.device
        ).eval()
        self._processor = open_processor(checkpoint)
        self._text = chat_text(checkpoint, task.prompt)
        self._kv_bytes = self._rows = 0

    def run(self) -> dict[str, float]:
        with torch.inference_mode():
            started = time.perf_counter()
            inputs = self._inputs()
            prepared = time.perf_counter()
            cache = self._new_cache()
            token = self._prefill(inputs, cache).argmax(-1)
            token.item()
            first = time.perf_counter()
            rows = inputs["input_ids"].shape[1]
            for step in range(self._task.new_tokens - 1):
                token = self._decode(token, cache, rows + step).argmax(-1)
            token.item()
            end = time.perf_counter()
        self._rows, self._kv_bytes = rows, self._cache_bytes(cache)
        return {
            "first_token_ms": (first - started) * 1e3,
            "prefill_ms": (first - prepared) * 1e3,
            "preprocess_ms": (prepared - started) * 1e3,
            "decode_ms_per_token": (end - first) / (self._task.new_tokens - 1) * 1e3,
        }

    def describe(self) -> dict[str, Any]:
        """With the margins of its choices: how far the second best token was behind, relative to the largest logit."""
        tokens, seconds, margins = [], [], []
        with torch.inference_mode():
            inputs, cache = self._inputs(), self._new_cache()
            logits = self._prefill(inputs, cache)
            for step in range(self._task.new_tokens):
                logits = logits[0, -1].float()
                best = logits.topk(2)
                tokens.append(int(best.indices[0]))
                seconds.append(int(best.indices[1]))
                margins.append(float((best.values[0] - best.values[1]) / logits.abs().max()))
                logits = self._decode(best.indices[None, :1], cache, inputs["input_ids"].shape[1] + step)
        return {
            "tokens": tokens,
            "second_tokens": seconds,
            "margins": margins,
            "finite": all(margin == margin for margin in margins),
            "prompt_rows": {"lower": self._rows, "upper": self._rows},
            "kv_bytes": {"all": self._kv_bytes},
        }

    def _inputs(self) -> Any:
        from sts_export.media.images import load_image

        inputs = self._processor(images=load_image(self._task.picture), text=self._text, return_tensors="pt")
        return inputs.to(self._task.device, getattr(torch, self._task.dtype))

    def _new_cache(self) -> Any:
        """Grows with the rows in use."""
        return DynamicCache(config=self._model.config.get_text_config())

    def _prefill(self, inputs: Any, cache: Any) -> torch.Tensor:
        """Logits [1, 1, vocabulary] of the last row."""
        logits: torch.Tensor = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:]

    def _decode(self, token: torch.Tensor, cache: Any, row: int) -> torch.Tensor:
        """Logits [1, 1, vocabulary] after the token [1, 1] at this row."""
        logits: torch.Tensor = self._model(input_ids=token, past_key_values=cache, use_cache=True).logits
        return logits[:, -1:]

    def _cache_bytes(self, cache: Any) -> int:
        """Of all layers, as they are allocated."""
        return sum(int(tensor.nbytes) for layer in cache.layers for tensor in (layer.keys, layer.values))
