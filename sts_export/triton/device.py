"""The GPU of an instance."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

VISIBLE = "CUDA_VISIBLE_DEVICES"


def choose_gpu(args: Mapping[str, str], environment: MutableMapping[str, str]) -> None:
    """Let CUDA see only the GPU of an instance, before any library has started it; nothing is changed for one on the CPU.

    Every engine then runs on its first device, whichever it is.  Triton counts devices as CUDA does in its own process, which
    an operator may have limited already.

    Args:
        args: of Triton, for ``initialize``.
        environment: of the process; changed.
    """
    if args["model_instance_kind"] != "GPU":
        return
    number = int(args["model_instance_device_id"])
    seen = environment.get(VISIBLE)
    names = seen.split(",") if seen else []
    environment[VISIBLE] = names[number].strip() if number < len(names) else str(number)
