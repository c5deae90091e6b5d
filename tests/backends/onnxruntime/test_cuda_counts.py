"""Kernels, copies and waits of the CUDA path do not grow beyond what is recorded (scripts/cuda_imitation/recorded.json).

onnxruntime-gpu runs on an imitation of the CUDA libraries, in a process of its own.  Its folder comes from the environment
variable ONNXRUNTIME_GPU, else it is where scripts/cuda_imitation/fetch_onnxruntime_gpu puts it.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from scripts.cuda_imitation import recorded
from scripts.cuda_imitation.cases import Case, export_cases
from scripts.cuda_imitation.library import DEFAULT_PACKAGES, PROVIDER
from scripts.cuda_imitation.runs import REPOSITORY
from tests.plugins.trt_build import ARCHITECTURE, compile_targets, need_tools, run

pytestmark = pytest.mark.slow
RECORDED = recorded.read()


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder of onnxruntime-gpu."""
    found = Path(os.environ.get("ONNXRUNTIME_GPU") or REPOSITORY / DEFAULT_PACKAGES).resolve()
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("needs g++ on x86-64 to imitate CUDA")
    if not (found / PROVIDER).exists():
        pytest.skip(f"no onnxruntime-gpu in {found}: scripts/cuda_imitation/fetch_onnxruntime_gpu, or set ONNXRUNTIME_GPU")
    if not (found / f"onnxruntime_gpu-{RECORDED.version}.dist-info").exists():
        pytest.skip(f"the onnxruntime-gpu in {found} is not {RECORDED.version}, which the recorded counts are of")
    return found


@pytest.fixture(scope="module")
def bundles(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Path]:
    return export_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def operators(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of custom operators; its own CUDA runtime would not take the imitation for a driver."""
    need_tools()
    if not (root := os.environ.get("ONNXRUNTIME_ROOT")):
        pytest.skip("no ONNX Runtime headers: set ONNXRUNTIME_ROOT to a folder with include/onnxruntime_c_api.h")
    folder = tmp_path_factory.mktemp("operators")
    options = f"-DONNXRUNTIME_ROOT={Path(root).resolve()}", f"-DSTS_CUDA_ARCHITECTURES={ARCHITECTURE}"
    shared_runtime = "-DCMAKE_CUDA_RUNTIME_LIBRARY=Shared"
    configured = run(["cmake", "-S", REPOSITORY / "plugins", "-B", folder, *options, shared_runtime])
    assert configured.returncode == 0, configured.stdout
    compile_targets(folder, ["sts_onnxruntime"])
    return folder / "libsts_onnxruntime.so"


def compare(found: recorded.Recorded, option: str = "") -> None:
    grown = recorded.grown(found.rows, RECORDED.rows)
    assert not grown, "\n".join(["the CUDA path asks for more than before:", *grown, f"if it has to: {recorded.RENEW}{option}"])
    assert found.version == RECORDED.version


def test_functions_of_the_graphs(bundles: dict[Case, Path], packages: Path, tmp_path: Path) -> None:
    compare(recorded.count_all(bundles, packages, tmp_path))


@pytest.mark.headers
def test_custom_operators(operators: Path, bundles: dict[Case, Path], packages: Path, tmp_path: Path) -> None:
    compare(recorded.count_all(bundles, packages, tmp_path, operators), " --operators LIBRARY")
