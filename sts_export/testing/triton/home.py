"""Where scripts/triton_server/fetch puts Triton."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[3] / "build" / "triton"
SERVER = HOME / "carrier" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
BACKENDS = HOME / "backends"
ENVIRONMENT = HOME / "env"
LIBRARIES = HOME / "lib"
FETCH = "run scripts/triton_server/fetch"


def missing() -> str:
    """What a real server lacks here, and what to do about it; empty where it can run."""
    python = "python{}.{}".format(*sys.version_info)
    if not SERVER.exists():
        return f"no Triton server in {HOME}; {FETCH}"
    if not (ENVIRONMENT / "lib" / python / "site-packages" / "venv.pth").exists():
        return f"the models' environment in {HOME} is not of {python}; {FETCH}"
    if find_spec("tritonclient") is None:
        return "no tritonclient; pip install 'sts-export[triton-client]'"
    return ""
