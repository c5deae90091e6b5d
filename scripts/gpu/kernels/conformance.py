"""sts_conformance over the TensorRT plugins: the only way to run them on a GPU where there is no TensorRT."""

from __future__ import annotations

import re
import time
from typing import Any

from scripts.gpu.kernels.programs import CONFORMANCE, TENSORRT_LIBRARY, Programs, run
from scripts.gpu.progress import Clock


def check_plugins(programs: Programs, clock: Clock, *, on_gpu: bool) -> dict[str, Any]:
    """Run it.

    Returns:
        ``passed``: True or False, None if it did not run, and ``reason`` for that; ``seconds``; ``tail``: the end of what it
        printed.
    """
    program, library = programs.brought(CONFORMANCE), programs.brought(TENSORRT_LIBRARY)
    if program is None or library is None:
        absent = CONFORMANCE if program is None else TENSORRT_LIBRARY
        return {"passed": None, "reason": f"{absent} was not brought", "seconds": 0.0, "tail": ""}
    if not on_gpu:
        return {"passed": None, "reason": "it needs a GPU", "seconds": 0.0, "tail": ""}
    started = time.monotonic()
    done = run([str(program), str(library)], clock)
    text = done.stdout + done.stderr
    reason = None if done.returncode == 0 else f"exit code {done.returncode}"
    if reason is None and (skipped := re.search(r"^skipped \d+: .*", text, re.MULTILINE)):
        reason = skipped[0]  # it saw no GPU
    return {"passed": reason is None, "reason": reason, "seconds": time.monotonic() - started, "tail": text[-3000:]}
