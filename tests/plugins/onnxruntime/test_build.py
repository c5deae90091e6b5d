"""CMake and scripts/build_plugins with ONNX Runtime's headers: where they are looked for, and what is said without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.plugins.onnxruntime.headers import header_root
from tests.plugins.trt_build import ARCHITECTURE, REPOSITORY, need_tools, run

pytestmark = pytest.mark.headers
SCRIPT = REPOSITORY / "scripts" / "build_plugins"


def configured(folder: Path, root: Path | None) -> tuple[int, str]:
    """Exit status and output, with CMake's line breaks taken out."""
    need_tools()
    options = [f"-DSTS_CUDA_ARCHITECTURES={ARCHITECTURE}", *([] if root is None else [f"-DONNXRUNTIME_ROOT={root}"])]
    result = run(["cmake", "-S", REPOSITORY / "plugins", "-B", folder, *options])
    return result.returncode, " ".join(result.stdout.split())


def fake_header(folder: Path, version: int) -> None:
    folder.mkdir(parents=True)
    (folder / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")


def test_where_headers_are(tmp_path: Path) -> None:
    """One build folder for all: what was found before is looked for again."""
    for version, place in enumerate((".", "include", "include/onnxruntime", "include/onnxruntime/core/session"), 17):
        root = tmp_path / str(version)
        fake_header(root / place, version)
        status, text = configured(tmp_path / "build", root)
        assert status == 0, text
        assert f"ONNX Runtime headers: 1.{version} in {root / place}" in text
    targets = run(["cmake", "--build", tmp_path / "build", "--target", "help"]).stdout
    assert "sts_onnxruntime" in targets


def test_wrong_headers(tmp_path: Path) -> None:
    """A folder without headers is not replaced by those of the system; headers that are too old are refused."""
    (tmp_path / "empty").mkdir()
    status, text = configured(tmp_path / "build", tmp_path / "empty")
    assert status != 0 and f"no ONNX Runtime headers (onnxruntime_c_api.h) in {tmp_path / 'empty'}" in text, text
    fake_header(tmp_path / "old", 16)
    status, text = configured(tmp_path / "build", tmp_path / "old")
    assert status != 0 and "are of 1.16; the operators need 1.17 or later" in text, text


def test_no_operators_without_headers(tmp_path: Path) -> None:
    root = header_root()
    if root is not None and str(root).startswith("/usr/include"):
        pytest.skip("ONNX Runtime headers are installed here")
    status, text = configured(tmp_path, None)
    assert status == 0 and "ONNX Runtime headers were not found: its operators are not built" in text, text
    targets = run(["cmake", "--build", tmp_path, "--target", "help"]).stdout
    assert "sts_kernels" in targets and "sts_onnxruntime" not in targets


def test_script_without_headers(tmp_path: Path) -> None:
    need_tools()
    result = run([SCRIPT, "--onnxruntime-root", tmp_path, "--output", tmp_path / "out"])
    assert result.returncode == 1 and f"no ONNX Runtime headers in {tmp_path}" in result.stdout
    assert len(result.stdout.splitlines()) == 1 and not (tmp_path / "out").exists()


FAKE_CMAKE = """#!/bin/sh
case "$*" in
  *--build*) exit 0 ;;
  *DTENSORRT_ROOT=/*) echo "-- TensorRT headers: 10.9 in there" ;;
esac
case "$*" in *DONNXRUNTIME_ROOT=/*) echo "-- ONNX Runtime headers: 1.29 in there" ;; esac
"""
TENSORRT, ONNXRUNTIME, KERNELS = "libsts_plugins.so", "libsts_onnxruntime.so", "libsts_kernels.so"


@pytest.mark.parametrize(
    ("given", "libraries", "said"),
    [
        (["--tensorrt-root", "--onnxruntime-root"], [TENSORRT, ONNXRUNTIME], []),
        (["--tensorrt-root"], [TENSORRT], ["ONNX Runtime's headers were not found, so its operators were not built"]),
        (["--onnxruntime-root"], [ONNXRUNTIME], ["TensorRT's headers were not found, so its plugins were not built"]),
        ([], [KERNELS], ["TensorRT's headers were not found", "ONNX Runtime's headers were not found"]),
    ],
    ids=["both", "tensorrt", "onnxruntime", "none"],
)
def test_script(tmp_path: Path, given: list[str], libraries: list[str], said: list[str]) -> None:
    """Fake of CMake: it finds the headers that it is given.  A relative folder is the caller's; each line of the output is a
    library; one of the two is enough."""
    need_tools()
    fake_header(tmp_path / "headers" / "include", 29)
    (tmp_path / "headers" / "include" / "NvInferRuntimePlugin.h").touch()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "cmake").write_text(FAKE_CMAKE)
    (tmp_path / "tools" / "cmake").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}"}
    options = " ".join(f"{option} headers" for option in given)
    result = run(["bash", "-c", f"{SCRIPT} {options} --output out 2>progress"], cwd=tmp_path, env=environment)
    assert result.returncode == (0 if given else 1)
    assert result.stdout.splitlines() == [str(tmp_path / "out" / library) for library in libraries]
    notes = [line for line in (tmp_path / "progress").read_text().splitlines() if line.startswith("build_plugins: ")]
    assert len(notes) == len(said) and all(text in note for text, note in zip(said, notes, strict=True))
