"""What is timed, opened in a worker: a bundle under one of sts-export's backends, and transformers on the same weights.

All go from the picture file to the first token, image processor and tokenizer included, and then decode greedily.
"""

from __future__ import annotations

from typing import Any

from scripts.gpu.end_to_end.task import Task
from scripts.gpu.pipelines import BundleTarget, open_pipeline
from sts_export.measuring.turns import Runner


class BundleRunner:
    """A bundle under the pipeline."""

    def __init__(self, target: BundleTarget, task: Task) -> None:
        self._pipeline = open_pipeline(target, threads=1 if task.device == "cpu" else None)
        self._task = task
        self._result: Any = None

    def run(self) -> dict[str, float]:
        return self.answer(self._task.prompt)

    def answer(self, prompt: str) -> dict[str, float]:
        task = self._task
        result = self._pipeline.generate(prompt, task.picture, max_new_tokens=task.new_tokens, ignore_eos=True)
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
            "operators": result.to_json().get("operators"),
            "kv_bytes": {"lower": result.kv_cache_bytes.lower, "upper": result.kv_cache_bytes.upper},
        }


def open_bundle(target: BundleTarget, task: Task) -> Runner:
    return BundleRunner(target, task)


def open_transformers(target: dict[str, str], task: Task) -> Runner:
    from scripts.gpu.end_to_end.transformers_runner import TransformersRunner

    return TransformersRunner(target["checkpoint"], task)


def open_compiled_transformers(target: dict[str, str], task: Task) -> Runner:
    from scripts.gpu.end_to_end.compiled_runner import CompiledRunner

    return CompiledRunner(target["checkpoint"], task)
