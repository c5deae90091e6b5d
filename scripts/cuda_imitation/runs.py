"""Starts the worker and reads what it counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.cuda_imitation.counts import Counts, Event
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.library import build

REPOSITORY = Path(__file__).parents[2]
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Run:
    """Three requests with one picture each.

    Args:
        bundle: its folder.
        picture: width and height in pixels.
        operators: library of custom operators, linked with the CUDA runtime as a shared library; None: without.
    """

    bundle: Path
    picture: tuple[int, int]
    operators: Path | None = None


@dataclass(frozen=True)
class Counted:
    """What the graphs of a bundle ask of CUDA, by graph; decoder parts as ``prefill llm_lower`` and ``decode llm_lower``.

    Args:
        version: of ONNX Runtime.
        first: while the first request is answered; of decode, the last step.
        again: the same request once more.
        other_length: a longer prompt.
        nodes: graph -> provider -> operator -> how many nodes.
    """

    version: str
    first: Mapping[str, Counts]
    again: Mapping[str, Counts]
    other_length: Mapping[str, Counts]
    nodes: Mapping[str, Mapping[str, Mapping[str, int]]]

    def nodes_on(self, graph: str, *, cuda: bool) -> int:
        """How many nodes of a graph the GPU takes, or the CPU."""
        providers = self.nodes[graph].items()
        return sum(sum(operators.values()) for provider, operators in providers if (provider == CUDA) == cuda)


def count(runs: Sequence[Run], packages: Path, scratch: Path) -> list[Counted]:
    """Answer requests on the imitation.

    Args:
        packages: folder of onnxruntime-gpu.
        scratch: folder for the imitation.

    Raises:
        ImitationError: it cannot be built, or the run failed.
    """
    operators = {run.operators for run in runs if run.operators is not None}
    libraries = build(packages, scratch, sorted(operators))
    paths = {"PYTHONPATH": f"{packages}:{REPOSITORY}", "LD_LIBRARY_PATH": str(scratch)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cuda_imitation.worker"],
        input=json.dumps({"libraries": libraries, "runs": [asdict(run) for run in runs]}, default=str),
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise ImitationError(f"ONNX Runtime does not run on the imitation: {last[:500]}")
    return [_counted(found) for found in json.loads(done.stdout.splitlines()[-1])]


def _counted(found: Mapping[str, Any]) -> Counted:
    def answer(name: str) -> dict[str, Counts]:
        return {graph: Counts([Event(*event) for event in events]) for graph, events in found[name].items()}

    return Counted(found["version"], answer("first"), answer("again"), answer("other_length"), found["nodes"])
