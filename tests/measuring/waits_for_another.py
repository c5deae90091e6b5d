"""Imported by worker processes: ready once another process that the same parent started imports it, too."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

_folder = Path(tempfile.gettempdir()) / f"sts-export-tests-{os.getppid()}"
_folder.mkdir(exist_ok=True)
(_folder / str(os.getpid())).touch()
_deadline = time.monotonic() + 60
while len(list(_folder.iterdir())) < 2:
    if time.monotonic() > _deadline:
        raise TimeoutError("no other process came")
    time.sleep(0.01)
