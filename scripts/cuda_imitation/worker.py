"""Runs a bundle on the CUDA provider over the imitation and prints the counts as JSON.

    python -m scripts.cuda_imitation.worker BUNDLE WIDTH HEIGHT [--plugins LIBRARY]

Started by runs.py with the folders of onnxruntime-gpu and of the imitation in its paths.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import astuple
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from scripts.cuda_imitation.counts import Counts, Log

_STEPS = 4
_NODES_ENTRY = "session.record_ep_graph_assignment_info"


def main() -> None:
    bundle, width, height, libraries = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    # By name, so that ONNX Runtime finds these loaded whatever else is installed.
    for library in libraries:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    print(json.dumps(_count(bundle, (width, height), Log("libcudart.so.13"))))


def _count(folder: Path, size: tuple[int, int], log: Log) -> dict[str, Any]:
    import onnxruntime as ort

    from sts_export import Pipeline
    from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend

    class RecordingOptions(ort.SessionOptions):  # type: ignore[misc]
        """Sessions say which provider takes which node only if asked before."""

        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry(_NODES_ENTRY, "1")

    class Counting(OnnxRuntimeBackend):
        """Counts each graph by itself."""

        found: dict[str, Counts] = {}
        phase = "prefill"

        def _run(self, name: str, session: Any, binding: Any, inputs: Any, fetch: Collection[str]) -> dict[str, Any]:
            log.reset()
            outputs = super()._run(name, session, binding, inputs, fetch)
            self.found[f"{self.phase} {name}" if name.startswith("llm") else name] = log.counts()
            return outputs

        def decode(self, caches: Any, inputs: Any) -> Any:
            self.phase = "decode"
            logits = super().decode(caches, inputs)
            self.phase = "prefill"
            return logits

    from sts_export.backends import choice

    with mock.patch.object(ort, "SessionOptions", RecordingOptions), mock.patch.object(choice, "OnnxRuntimeBackend", Counting, create=True):
        pipeline = Pipeline(folder, backend="onnxruntime-cuda")
        backend: Any = Counting(pipeline.bundle, device="cuda")
    pipeline._backend = pipeline._graphs._backend = backend
    picture = Image.new("RGB", size, (120, 60, 200))
    # What is done once is over after the first answer; a prompt of another length may need something anew.
    answers: dict[str, dict[str, Counts]] = {}
    for name, prompt in (("first", "one"), ("again", "one"), ("other length", "one two three")):
        backend.found = {}
        pipeline.generate(prompt, [picture], max_new_tokens=_STEPS, ignore_eos=True)
        answers[name] = backend.found
    return {
        "version": ort.__version__,
        "counts": {answer: {graph: [astuple(event) for event in counts.events] for graph, counts in found.items()} for answer, found in answers.items()},
        "nodes": {graph: _nodes(session) for graph, session in backend._sessions.items()},
    }


def _nodes(session: Any) -> dict[str, dict[str, int]]:
    """Provider -> operator -> how many nodes."""
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {provider: dict(counter) for provider, counter in found.items()}


if __name__ == "__main__":
    main()
