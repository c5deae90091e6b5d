"""Programs of the compiler's package."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from scripts.cuda_imitation.failures import ImitationError


def output(command: Sequence[str], given: str = "") -> str:
    """What a program writes to its standard output.

    Raises:
        ImitationError: it is absent, or it failed.
    """
    if shutil.which(command[0]) is None:
        raise ImitationError(f"{command[0]} was not found; install a C++ compiler (Debian, Ubuntu: apt-get install g++)")
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImitationError(f"{command[0]} failed: {' '.join(done.stderr.split())[:500]}")
    return done.stdout
