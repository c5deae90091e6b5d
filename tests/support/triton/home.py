"""Where scripts/triton_server/fetch puts Triton, and the skipping of tests where it is not."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HOME = Path(__file__).parents[3] / "build" / "triton"
SERVER = HOME / "carrier" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
BACKENDS = HOME / "backends"
ENVIRONMENT = HOME / "env"
LIBRARIES = HOME / "lib"
FETCH = "run scripts/triton_server/fetch"


def missing() -> str:
    """What the tests with a real server lack, and what to do about it; empty where they can run."""
    python = "python{}.{}".format(*sys.version_info)
    if not SERVER.exists():
        return f"no Triton server in {HOME}; {FETCH}"
    if not (ENVIRONMENT / "lib" / python / "site-packages" / "venv.pth").exists():
        return f"the models' environment in {HOME} is not of {python}; {FETCH}"
    if find_spec("tritonclient") is None:
        return "no tritonclient; pip install 'sts-export[triton-client]'"
    return ""


needs_triton = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="session")
def triton_home() -> Path:
    """The folder that scripts/triton_server/fetch made."""
    if reason := missing():
        pytest.skip(reason)
    return HOME
