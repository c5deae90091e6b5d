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


def loaded_by(code: str, *arguments: str | Path) -> str:
    """What a fresh process prints: libraries stay in the process that loads them."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PRINT = (
    "import ctypes, sys; sys.path[:0] = sys.argv[2:]\n"
    "from sts_export.backends.onnxruntime.cuda_libraries import load_cuda_libraries\n"
    "print(*load_cuda_libraries(sys.argv[1]), sep='\\n')\n"
)


def found_in(folder: Path, printed: str) -> list[Path]:
    """Of the files that PRINT prints those in a test's folder: the environment's own CUDA is found, too."""
    return [Path(line) for line in printed.splitlines() if Path(line).is_relative_to(folder)]


def test_libraries_of_the_right_cuda_are_loaded_in_order(tmp_path: Path) -> None:
    """cublas needs cublasLt by its name alone, as NVIDIA's do; CUDA 12 beside it is left alone."""
    one, other = tmp_path / "one", tmp_path / "other"
    lt = library(other / "nvidia/cu13/lib/libcublasLt.so.13")
    cublas = library(other / "nvidia/cu13/lib/libcublas.so.13", needs=lt)
    library(one / "nvidia/cublas/lib/libcublas.so.12")
    cudnn = library(other / "nvidia/cudnn/lib/libcudnn.so.9")
    library(other / "nvidia/cudnn/lib/libcudnn_ops.so.9")
    printed = loaded_by(PRINT + "ctypes.CDLL('libcublas.so.13')", "13.0", one, tmp_path / "absent", other)
    assert found_in(tmp_path, printed) == [lt, cublas, cudnn]


def test_two_releases_of_cuda(tmp_path: Path) -> None:
    """What has a version of its own may be there for another CUDA first.  That of cuDNN is the same: its place decides."""
    old, new = tmp_path / "old", tmp_path / "new"
    of_old = [library(old / f"nvidia/{name}") for name in ("cublas/lib/libcublasLt.so.12", "cufft/lib/libcufft.so.11")]
    of_old.append(library(old / "nvidia/cudnn/lib/libcudnn.so.9"))
    of_new = [library(new / f"nvidia/{name}") for name in ("cu13/lib/libcublasLt.so.13", "cu13/lib/libcufft.so.12")]
    of_new.append(library(new / "nvidia/cudnn/lib/libcudnn.so.9"))
    for version, wanted in (("12.8", of_old), ("13.0", of_new)):
        for order in ((old, new), (new, old)):
            found = found_in(tmp_path, loaded_by(PRINT, version, *order))
            assert set(wanted) <= set(found) and len(found) == len({file.name for file in found})


def test_what_does_not_load_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nvidia/cu13/lib/libcudart.so.13"
    broken.parent.mkdir(parents=True)
    broken.write_text("no library")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert load_cuda_libraries("13.0") == ()


def test_without_cuda_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert load_cuda_libraries("") == ()
