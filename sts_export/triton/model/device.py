"""The GPU of an instance."""

from __future__ import annotations

from collections.abc import MutableMapping

VISIBLE = "CUDA_VISIBLE_DEVICES"


def choose_gpu(number: int, environment: MutableMapping[str, str]) -> None:
    """Let CUDA see only one GPU, before any library has started it.

    Every engine then runs on its first device, whichever it is.  Triton counts devices as CUDA does in its own process, which
    an operator may have limited already.

    Args:
        number: that Triton gave the instance.
        environment: of the process; changed.
    """
    seen = environment.get(VISIBLE)
    names = seen.split(",") if seen else []
    environment[VISIBLE] = names[number].strip() if number < len(names) else str(number)
