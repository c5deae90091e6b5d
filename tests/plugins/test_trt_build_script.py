"""scripts/build_plugins: what it needs, said in one line; and the library where it says that it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.plugins.trt_build import ARCHITECTURE, REPOSITORY, need_tools, one_root, run

SCRIPT = REPOSITORY / "scripts" / "build_plugins"


def stops(message: str, *arguments: str | Path, env: dict[str, str] | None = None, code: int = 1) -> None:
    """The script ends at once, with this in its only line; exit code 2 is for wrong arguments."""
    result = run([SCRIPT, *arguments], env=env)
    assert result.returncode == code and message in result.stdout and len(result.stdout.splitlines()) == 1, result.stdout


def path_with(folder: Path, *tools: str) -> dict[str, str]:
    """An environment whose PATH has these tools, and those that the script itself needs, and nothing else."""
    folder.mkdir()
    for tool in ("bash", "env", "dirname", "nproc", *tools):
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"{tool} is absent")
        (folder / tool).symlink_to(found)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "x"], "unknown argument --root"),
        (["--jobs"], "--jobs needs a value"),
        (["--onnxruntime-root"], "--onnxruntime-root needs a value"),
        (["--architectures", "--jobs", "2"], "--architectures needs a value"),
        (["--jobs", "many"], "--jobs many is no number above 0"),
        (["--architectures", "89,90"], '--architectures "89,90" is no list like "89;90"'),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    stops(message, *arguments, code=2)


def test_unknown_architectures(tmp_path: Path) -> None:
    """Fake of nvcc: it knows what is said of it."""
    (tmp_path / "nvcc").write_text("#!/bin/sh\nprintf 'compute_89\\ncompute_90\\ncompute_120\\n'\n")
    (tmp_path / "nvcc").chmod(0o755)
    environment = {**path_with(tmp_path / "tools", "cmake", "c++"), "CUDACXX": str(tmp_path / "nvcc")}
    message = "nvcc does not know the architecture 12; it knows 89;90;120"
    stops(message, "--architectures", "90;12", "--output", tmp_path / "out", env=environment, code=2)
    assert not (tmp_path / "out").exists()


def test_missing_tools(tmp_path: Path) -> None:
    stops("cmake was not found; install", env=path_with(tmp_path / "nothing"))
    stops("no C++ compiler was found; install", env=path_with(tmp_path / "cmake", "cmake"))
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        stops("nvcc was not found; install", env=path_with(tmp_path / "compiler", "cmake", "c++"))


@pytest.mark.headers
def test_missing_headers(tmp_path: Path) -> None:
    need_tools()
    stops(f"no TensorRT headers in {tmp_path}", "--tensorrt-root", tmp_path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@one_root
def test_library(root: Path, tmp_path: Path) -> None:
    """Prints nothing but paths of libraries on its output; a relative output folder is the caller's."""
    need_tools()
    command = f'{SCRIPT} --tensorrt-root "{root}" --architectures {ARCHITECTURE} --output out --jobs 2 2>progress'
    result = run(["bash", "-c", command], cwd=tmp_path, env=dict(os.environ))
    progress = (tmp_path / "progress").read_text()
    assert result.returncode == 0, progress
    # With ONNX Runtime's headers on this machine there is a second line.
    assert result.stdout.splitlines()[0] == str(tmp_path / "out" / "libsts_plugins.so")
    for name in ("libsts_plugins.so", "libsts_plugins_autoload.so", "libsts_kernels.so", "sts_conformance", "check_kernels"):
        assert (tmp_path / "out" / name).exists(), name
    report = json.loads(run([tmp_path / "out" / "check_kernels", "--host-only"]).stdout)
    assert report["failures"] == [] and report["checks"] > 300
