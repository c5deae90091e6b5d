"""OpenVINO GenAI as a contender: its model and its server, both made by the Python of an environment that has it."""

from __future__ import annotations

import subprocess
from pathlib import Path

NAME = "OpenVINO GenAI, unpruned"
_FORMATS = {"none": "fp32", "int8": "int8", "int4": "int4"}
_VERSIONS = "import importlib.metadata as m; print(*(m.version(n) for n in ('openvino-genai', 'optimum-intel')))"


def convert(python: str, checkpoint: str, folder: Path, quantize: str) -> None:
    """Export a checkpoint with optimum-intel; ``quantize`` is none, int8 or int4.

    Raises:
        RuntimeError: it fails, with the end of what it said.
    """
    options = ["--model", checkpoint, "--task", "image-text-to-text", "--weight-format", _FORMATS[quantize], str(folder)]
    command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"optimum-intel could not convert {checkpoint}: {done.stderr[-2000:]}")


def served(python: str, folder: Path, slots: int, batched_tokens: int, *, reuse: bool) -> list[str]:
    """Command of its server; ``reuse``: it may keep the blocks of past prompts."""
    options = ["--port", "0", "--slots", str(slots), "--batched-tokens", str(batched_tokens), *(["--reuse"] if reuse else [])]
    return [python, "-m", "benchmarks.serving.openvino", str(folder), *options]


def versions(python: str) -> dict[str, str]:
    """Of what is measured and of what converted for it."""
    said = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(("openvino-genai", "optimum-intel"), said, strict=True))
