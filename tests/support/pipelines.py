"""Bundles for tests of the pipeline, prompts of any length, and a spy on the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sts_export import Pipeline
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.decoder.parts import FIRST

KEEP = (12, 4)
TEXT, NEW = 40, 24
LAYERS, PRUNE_LAYER = 4, 2


@dataclass(frozen=True)
class DecoderCall:
    """A prompt, or a step of all slots.

    Args:
        slot: of a prompt; None for a step.
        inputs: of the first decoder part.
        caches: that it works on.
    """

    slot: int | None
    inputs: Mapping[str, Any]
    caches: Any

    @property
    def is_prefill(self) -> bool:
        return self.slot is not None

    @property
    def batch(self) -> int:
        return len(self.inputs["input_ids"])


class Spy:
    """Counts the backend's calls and passes them on.

    ``calls`` has the graph's name where ``run`` was called, and the method's otherwise.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.calls: list[str] = []
        self.decoder: list[DecoderCall] = []
        self.logits: list[np.ndarray[Any, Any]] = []

    @classmethod
    def on(cls, pipeline: Pipeline) -> Spy:
        """Watch a pipeline's backend."""
        spy = cls(pipeline._backend)
        pipeline._backend = pipeline._graphs._backend = spy
        return spy

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return method(*args, **kwargs)

        return call

    def run(self, graph: str, inputs: Any, **options: Any) -> Any:
        self.calls.append(graph)
        outputs = self._backend.run(graph, inputs, **options)
        if graph == FIRST:
            self.decoder.append(DecoderCall(options["slot"], inputs, options["caches"]))
        if "logits" in outputs:
            self.logits.append(outputs["logits"].copy())
        return outputs

    def decode(self, caches: Any, inputs: Any) -> Any:
        self.calls.append("decode")
        self.decoder.append(DecoderCall(None, inputs[FIRST], caches))
        logits = self._backend.decode(caches, inputs)
        self.logits.append(logits.copy())
        return logits

    @property
    def decoder_runs(self) -> int:
        """Prompts and steps that went through the decoder."""
        return self.calls.count(FIRST) + self.calls.count("decode")

    @property
    def batches(self) -> list[int]:
        """Slots of every step, prompts aside."""
        return [call.batch for call in self.decoder if not call.is_prefill]


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
