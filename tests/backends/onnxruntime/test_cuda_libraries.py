"""CUDA's libraries are found on Python's path; small ones of the same names stand in for them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sts_export.backends.onnxruntime.cuda_libraries import load_cuda_libraries


def library(file: Path, needs: Path | None = None) -> Path:
    """A shared library whose soname is its file's name."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to make small libraries")
    file.parent.mkdir(parents=True, exist_ok=True)
    others = [str(needs)] if needs is not None else []
    command = ["gcc", "-shared", "-x", "c", "/dev/null", "-x", "none", "-Wl,--no-as-needed", *others]
    subprocess.run([*command, f"-Wl,-soname,{file.name}", "-o", str(file)], check=True)
    return file


def loaded_by(code: str, *paths: Path) -> str:
    """What a fresh process prints: libraries stay in the process that loads them."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_libraries_of_the_right_cuda_are_loaded_in_order(tmp_path: Path) -> None:
    """cublas needs cublasLt by its name alone, as NVIDIA's do; CUDA 12 beside it is left alone."""
    one, other = tmp_path / "one", tmp_path / "other"
    lt = library(other / "nvidia/cu13/lib/libcublasLt.so.13")
    library(other / "nvidia/cu13/lib/libcublas.so.13", needs=lt)
    library(one / "nvidia/cublas/lib/libcublas.so.12")
    library(other / "nvidia/cudnn/lib/libcudnn.so.9")
    library(other / "nvidia/cudnn/lib/libcudnn_ops.so.9")
    code = (
        "import ctypes, sys; sys.path += sys.argv[1:]\n"
        "from sts_export.backends.onnxruntime.cuda_libraries import load_cuda_libraries\n"
        "print(*(file.name for file in load_cuda_libraries('13.0')))\n"
        "ctypes.CDLL('libcublas.so.13')"
    )
    assert loaded_by(code, one, tmp_path / "absent", other) == "libcublasLt.so.13 libcublas.so.13 libcudnn.so.9"


def test_what_does_not_load_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nvidia/cu13/lib/libcudart.so.13"
    broken.parent.mkdir(parents=True)
    broken.write_text("no library")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert load_cuda_libraries("13.0") == ()


def test_without_cuda_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert load_cuda_libraries("") == ()
