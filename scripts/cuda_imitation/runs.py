"""Starts the worker and reads what it counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.cuda_imitation.counts import Counts, Event
from scripts.cuda_imitation.failures import ImitationError

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Counted:
    """What a bundle's graphs ask of CUDA.

    Args:
        version: of ONNX Runtime.
        first: while the first request is answered: by graph, decoder parts as ``prefill`` and as ``decode``.
        again: the same request once more.
        other_length: a longer prompt.
        nodes: graph -> provider -> operator -> how many nodes.
    """

    version: str
    first: dict[str, Counts]
    again: dict[str, Counts]
    other_length: dict[str, Counts]
    nodes: dict[str, dict[str, dict[str, int]]]


def count(
    bundle: Path, picture: tuple[int, int], packages: Path, imitation: Path, libraries: Sequence[str]
) -> Counted:
    """Answer three requests with one picture each on the imitation.

    Args:
        picture: width and height in pixels.
        packages: folder of onnxruntime-gpu.
        imitation: folder that ``library.build`` wrote.
        libraries: the names it gave.

    Raises:
        ImitationError: the run failed.
    """
    paths = {"PYTHONPATH": f"{packages}:{_ROOT}", "LD_LIBRARY_PATH": str(imitation)}
    command = [sys.executable, "-m", "scripts.cuda_imitation.worker", str(bundle), *map(str, picture), *libraries]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImitationError(f"{bundle} does not run on the imitation: {done.stderr.strip().splitlines()[-1][:500]}")
    found = json.loads(done.stdout.splitlines()[-1])
    answers = {
        answer: {graph: Counts([Event(*event) for event in events]) for graph, events in graphs.items()} for answer, graphs in found["counts"].items()
    }
    return Counted(found["version"], answers["first"], answers["again"], answers["other length"], found["nodes"])
