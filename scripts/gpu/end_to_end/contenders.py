"""What is timed, opened in a worker: a bundle under one of sts-export's backends, and transformers on the same weights.

Both go from the picture file to the first token, image processor and tokenizer included, and then decode greedily.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from scripts.gpu.end_to_end.task import Task
from sts_export.measuring.turns import Runner


class BundleRunner:
    """A bundle under the pipeline."""

    def __init__(self, bundle: str, backend: str, task: Task) -> None:
        from sts_export.generation.pipeline import Pipeline

        self._pipeline = Pipeline(bundle, backend=backend, threads=1 if task.device == "cpu" else None)
        self._task = task
        self._result: Any = None

    def run(self) -> dict[str, float]:
        task = self._task
        result = self._pipeline.generate(task.prompt, task.picture, max_new_tokens=task.new_tokens, ignore_eos=True)
        self._result, timings = result, result.timings_ms
        assert timings.decode_per_token is not None
        return {
            "first_token_ms": timings.first_token,
            "prefill_ms": timings.first_token - timings.preprocess,
            "preprocess_ms": timings.preprocess,
            "vision_ms": timings.vision,
            "select_ms": timings.select,
            "prefill_lower_ms": timings.prefill_lower,
            "prefill_upper_ms": timings.prefill_upper,
            "decode_ms_per_token": timings.decode_per_token,
        }

    def describe(self) -> dict[str, Any]:
        result, tokens = self._result, self._result.visual_tokens
        lower = result.prompt_tokens
        return {
            "tokens": result.token_ids,
            "visual_tokens": {"total": tokens.total, "stage1": tokens.stage1, "stage2": tokens.stage2},
            "prompt_rows": {"lower": lower, "upper": lower - tokens.stage1 + tokens.stage2},
            "kv_bytes": {"lower": result.kv_cache_bytes.lower, "upper": result.kv_cache_bytes.upper},
        }


class TransformersRunner:
    """AutoModelForImageTextToText with its default attention on a GPU and a CPU, sdpa; unpruned.

    No synchronization between decode steps: the most favourable way to run it without compiling it.
    """

    def __init__(self, checkpoint: str, task: Task) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from sts_export.requests.prompt import ChatTokenizer

        if task.device == "cpu":
            torch.set_num_threads(1)  # toys gain nothing from more, and lose where others use the machine, too
        self._torch, self._task = torch, task
        dtype = getattr(torch, task.dtype)
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa")
        self._model = model.eval().to(task.device)
        # The same image processor as the bundle's: torchvision's resizes a little differently.
        self._processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
        self._text = ChatTokenizer.open(Path(checkpoint)).render(task.prompt, 1)  # the bundle's own template
        self._kv_bytes = self._rows = 0

    def run(self) -> dict[str, float]:
        with self._torch.inference_mode():
            started = time.perf_counter()
            inputs = self._inputs()
            prepared = time.perf_counter()
            output = self._model(**inputs, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            token.item()
            first = time.perf_counter()
            for _ in range(self._task.new_tokens - 1):
                output = self._model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
            token.item()
            end = time.perf_counter()
        self._rows = inputs["input_ids"].shape[1]
        self._kv_bytes = _cache_bytes(output.past_key_values)
        return {
            "first_token_ms": (first - started) * 1e3,
            "prefill_ms": (first - prepared) * 1e3,
            "preprocess_ms": (prepared - started) * 1e3,
            "decode_ms_per_token": (end - first) / (self._task.new_tokens - 1) * 1e3,
        }

    def describe(self) -> dict[str, Any]:
        """With the margins of its choices: how far the second best token was behind, relative to the largest logit."""
        tokens, seconds, margins = [], [], []
        with self._torch.inference_mode():
            output = self._model(**self._inputs(), use_cache=True, logits_to_keep=1)
            for _ in range(self._task.new_tokens):
                logits = output.logits[0, -1].float()
                best = logits.topk(2)
                tokens.append(int(best.indices[0]))
                seconds.append(int(best.indices[1]))
                margins.append(float((best.values[0] - best.values[1]) / logits.abs().max()))
                output = self._model(input_ids=best.indices[None, :1], past_key_values=output.past_key_values, use_cache=True)
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
        return inputs.to(self._task.device, getattr(self._torch, self._task.dtype))


def _cache_bytes(cache: Any) -> int:
    """Rows in use of a DynamicCache; it allocates no others."""
    return sum(int(tensor.nbytes) for layer in cache.layers for tensor in (layer.keys, layer.values))


def open_bundle(target: dict[str, str], task: Task) -> Runner:
    return BundleRunner(target["bundle"], target["backend"], task)


def open_transformers(target: dict[str, str], task: Task) -> Runner:
    return TransformersRunner(target["checkpoint"], task)
