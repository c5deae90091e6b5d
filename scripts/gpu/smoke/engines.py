"""Which engines answer the same questions, and which is compared with which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sts_export.backends.choice import CPU, CUDA

REFERENCE = "cpu"
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Engine:
    """One way to run a bundle.

    Args:
        against: name of the engine whose tokens and kept indices it must give.
        operators: library of operators for ONNX Runtime on CUDA; None runs without any.
        threads: of the CPU.
    """

    name: str
    backend: str
    against: str | None = None
    operators: Path | None = None
    threads: int | None = None


def engines(device: str, operators: Path | None) -> list[Engine]:
    """The CPU first; then the GPU without and with operators, or where there is none the CPU with other threads."""
    first = Engine(REFERENCE, CPU, threads=1)
    if device == "cpu":
        return [first, Engine("cpu-2-threads", CPU, REFERENCE, threads=2)]
    plain = Engine("cuda", CUDA, REFERENCE)
    if operators is None:
        return [first, plain]
    return [first, plain, Engine("cuda-operators", CUDA, plain.name, operators)]
