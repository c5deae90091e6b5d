"""Runs bundles on the CUDA provider over the imitation; started by runs.py, with its paths.

Reads one JSON object from the standard input, {"libraries": [names], "runs": [{"bundle", "picture", "operators"}]}, and
writes the counts as JSON in one line.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime as ort
from PIL import Image

from scripts.cuda_imitation.counts import Counts, Event, Log
from sts_export import Pipeline
from sts_export.backends import choice
from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend
from sts_export.bundle.manifest import Bundle, open_bundle

# What is done only once is over after the first answer; a prompt of another length may need something anew.
_PROMPTS = {"first": "one", "again": "one", "other_length": "one two three"}
_TOKENS = 4
_NODES_ENTRY = "session.record_ep_graph_assignment_info"


class RecordingOptions(ort.SessionOptions):  # type: ignore[misc]
    """Of sessions that can say which provider takes which node."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry(_NODES_ENTRY, "1")


class CountingBackend(OnnxRuntimeBackend):
    """Counts every run of a graph by itself; the last one of each stays.

    Decoder parts are named by what they are run for, ``prefill llm_lower`` and ``decode llm_lower``.
    """

    def __init__(self, bundle: Bundle, log: Log, **options: Any) -> None:
        with mock.patch.object(ort, "SessionOptions", RecordingOptions):
            super().__init__(bundle, device="cuda", **options)
        self.counts: dict[str, Counts] = {}
        self._log, self._phase = log, "prefill"

    def nodes(self) -> dict[str, dict[str, dict[str, int]]]:
        """Graph -> provider -> operator -> how many nodes."""
        return {name: _nodes(session) for name, session in self._sessions.items()}

    def decode(self, *args: Any) -> Any:
        self._phase = "decode"
        try:
            return super().decode(*args)
        finally:
            self._phase = "prefill"

    def _run(self, name: str, session: Any, binding: Any, inputs: Any, fetch: Collection[str]) -> dict[str, Any]:
        self._log.reset()
        outputs = super()._run(name, session, binding, inputs, fetch)
        self.counts[f"{self._phase} {name}" if name.startswith("llm") else name] = self._log.counts()
        return outputs


def main() -> None:
    request = json.load(sys.stdin)
    # By name, so that ONNX Runtime finds these loaded, whatever else is installed.
    for library in request["libraries"]:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    log = Log(request["libraries"][0])
    print(json.dumps([_count(log, **run) for run in request["runs"]]))


def _count(log: Log, bundle: str, picture: list[int], operators: str | None) -> dict[str, Any]:
    opened = open_bundle(Path(bundle))
    options = {} if operators is None else {"operators": Path(operators)}
    backend = CountingBackend(opened, log, **options)
    with mock.patch.object(choice, "open_backend", lambda *_: choice.OpenedBackend("onnxruntime-cuda", backend)):
        pipeline = Pipeline(opened.folder)
    image = Image.new("RGB", picture, (120, 60, 200))
    answers = {}
    for name, prompt in _PROMPTS.items():
        backend.counts = {}
        pipeline.generate(prompt, [image], max_new_tokens=_TOKENS, ignore_eos=True)
        answers[name] = {graph: [_plain(event) for event in counts.events] for graph, counts in backend.counts.items()}
    return {**answers, "nodes": backend.nodes(), "version": ort.__version__}


def _plain(event: Event) -> tuple[str, str, int]:
    return event.kind, event.name, event.bytes


def _nodes(session: Any) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {provider: dict(operators) for provider, operators in found.items()}


if __name__ == "__main__":
    main()
