"""Where ONNX Runtime's headers are: in the folder of the environment variable ONNXRUNTIME_ROOT, or where Debian puts them."""

from __future__ import annotations

import os
from pathlib import Path

_SYSTEM = [Path("/usr/include/onnxruntime") / folder for folder in (".", "core/session")]


def header_root() -> Path | None:
    """None: there are none."""
    if given := os.environ.get("ONNXRUNTIME_ROOT"):
        return Path(given).resolve()
    return next((folder for folder in _SYSTEM if (folder / "onnxruntime_c_api.h").exists()), None)
