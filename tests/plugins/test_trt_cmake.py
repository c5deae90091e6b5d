"""plugins/CMakeLists.txt: which headers and architectures it takes, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.trt_build import REPOSITORY, ROOTS, need_tools, run

pytestmark = pytest.mark.headers


def configured(folder: Path, *options: str) -> tuple[int, str]:
    """Exit status and output, with CMake's line breaks taken out."""
    need_tools()
    result = run(["cmake", "-S", REPOSITORY / "plugins", "-B", folder, *options])
    return result.returncode, " ".join(result.stdout.split())


def test_unknown_architectures_are_left_out(tmp_path: Path) -> None:
    status, text = configured(tmp_path, "-DSTS_CUDA_ARCHITECTURES=80;999;90")
    assert status == 0, text
    assert "Left out, unknown to the CUDA compiler: 999" in text
    assert "CUDA architectures: 80-real;90-real;90-virtual" in text
    status, text = configured(tmp_path, "-DSTS_CUDA_ARCHITECTURES=999")
    assert status != 0 and "none of the architectures 999 is known" in text, text


def test_no_plugins_without_headers(tmp_path: Path) -> None:
    if any(str(root).startswith("/usr/include") for root in ROOTS):
        pytest.skip("TensorRT headers are installed here")
    status, text = configured(tmp_path, "-DSTS_CUDA_ARCHITECTURES=90")
    assert status == 0, text
    assert "TensorRT headers were not found: its plugins are not built" in text
    assert "libnvinfer-headers-dev" in text and "-DTENSORRT_ROOT=FOLDER" in text
    targets = run(["cmake", "--build", tmp_path, "--target", "help"]).stdout
    assert "sts_kernels" in targets and "sts_plugins" not in targets and "sts_conformance" not in targets


def test_wrong_headers(tmp_path: Path) -> None:
    """A folder without headers is not replaced by those of the system; headers that are too old are refused."""
    root = tmp_path / "tensorrt"
    (root / "include").mkdir(parents=True)
    options = ("-DSTS_CUDA_ARCHITECTURES=90", f"-DTENSORRT_ROOT={root}")
    status, text = configured(tmp_path / "build", *options)
    assert status != 0 and f"no TensorRT headers (NvInferRuntimePlugin.h) in {root}" in text, text
    (root / "include" / "NvInferRuntimePlugin.h").touch()
    lines = [f"#define NV_TENSORRT_{part} {number}" for part, number in (("MAJOR", 8), ("MINOR", 6), ("PATCH", 1))]
    (root / "include" / "NvInferVersion.h").write_text("\n".join(lines))
    status, text = configured(tmp_path / "build", *options)
    assert status != 0 and "are of 8.6.1; the plugins need 10.3 or later" in text, text
