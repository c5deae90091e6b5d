"""Bundles for tests of the pipeline, prompts of any length, and a spy on the backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sts_export import Pipeline
from sts_export.backends.protocol import LowerInputs
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.contracts import VISUAL_ROW

KEEP = (12, 4)
TEXT, NEW = 40, 24
LAYERS, PRUNE_LAYER = 4, 2


class Spy:
    """Counts the backend's calls and passes them on."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: list[str] = []
        self.lower_inputs: list[LowerInputs] = []
        self.caches: list[Any] = []
        self.logits: list[np.ndarray[Any, Any]] = []

    @classmethod
    def on(cls, pipeline: Pipeline) -> Spy:
        """Watch a pipeline's backend."""
        spy = cls(pipeline._backend)
        pipeline._backend = pipeline._engine._backend = spy
        return spy

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)

        def call(*args: Any) -> Any:
            self.calls.append(name)
            result = method(*args)
            if name in ("lower", "decode"):
                self.caches.append(args[0])
                self.lower_inputs.append(args[1])
            if name in ("upper", "decode"):
                self.logits.append(result.copy())
            return result

        return call

    @property
    def decoder_runs(self) -> int:
        """Prompts and tokens that went through the decoder."""
        return self.calls.count("lower") + self.calls.count("decode")


def export_to(checkpoint: Path, output: Path, **settings: Any) -> Path:
    defaults = {"keep": KEEP, "prune_layer": PRUNE_LAYER, "max_prompt_tokens": TEXT, "max_new_tokens": NEW}
    return export(ExportRequest(str(checkpoint), output=output, **{**defaults, **settings})).folder


def prompt_of(pipeline: Pipeline, tokens: int, images: int) -> str:
    """A prompt of exactly ``tokens`` text tokens, template included."""
    for letters in range(1, 200):
        prompt = "!" * letters
        if (pipeline.prepare_ids(prompt, [KEEP[0]] * images) != VISUAL_ROW).sum() == tokens:
            return prompt
    raise AssertionError(f"no prompt of {tokens} tokens")
