"""Where scripts/triton_server/fetch puts Triton."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).parents[3] / "build" / "triton"


def server(home: Path = HOME) -> Path:
    """The program."""
    return home / "carrier" / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def missing(home: Path = HOME) -> str:
    """What a run lacks, in one line, and what to do about it; empty where nothing is lacking."""
    python = "python{}.{}".format(*sys.version_info)
    if not server(home).exists() or not (home / "env" / "lib" / python / "site-packages" / "venv.pth").exists():
        return f"there is no Triton server for {python} in {home}; run scripts/triton_server/fetch"
    if find_spec("tritonclient") is None:
        return "there is no tritonclient; pip install 'sts-export[triton-client]'"
    return ""


def variables(home: Path = HOME) -> dict[str, str]:
    """Of the server's process: by these its stubs find the models' environment."""
    paths = {"PATH": home / "env" / "bin", "LD_LIBRARY_PATH": home / "lib"}
    found = {name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in paths.items()}
    return {**os.environ, **found}
