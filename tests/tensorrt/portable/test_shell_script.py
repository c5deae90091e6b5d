"""What the commands' script does before a tool runs: help, where tools are, which Python modules are missing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.tensorrt.portable.graphs import GraphsRequest, write_graphs
from tests.support.programs import bare, calls_of, program, recorder, run_script


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """Commands for TensorRT 10.3 without plugins, and for TensorRT for RTX."""
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "a bundle's copy"))
    write_graphs(GraphsRequest(folder, version="10.3", use_plugins=False))
    write_graphs(GraphsRequest(folder, runtime="tensorrt-rtx"))
    return folder


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["build", "--help"], ["compare", "folder", "-h"]])
@pytest.mark.parametrize("label", ["tensorrt-10.7", "tensorrt-rtx"])
def test_help_needs_nothing(copy: Path, tmp_path: Path, label: str, arguments: list[str]) -> None:
    """Neither tools nor the plugin library."""
    write_graphs(GraphsRequest(copy, version="10.7"))
    before = {str(file) for file in copy.rglob("*")}
    done = run_script(copy, label, *arguments, path=bare(tmp_path / "bare"), only=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash engines/commands-{label}.sh build [FOLDER]" in done.stdout and "compare [FOLDER]" in done.stdout
    assert {str(file) for file in copy.rglob("*")} == before


def test_trtexec_is_looked_for(copy: Path, tmp_path: Path) -> None:
    """The folder of NVIDIA's packages is replaced by one of this test."""
    file, folder = copy / "engines" / "commands-tensorrt-10.3.sh", tmp_path / "packages"
    assert "/usr/src/tensorrt/bin" in file.read_text()
    file.write_text(file.read_text().replace("/usr/src/tensorrt/bin", str(folder)))
    path = bare(tmp_path / "bare")
    done = run_script(copy, "tensorrt-10.3", path=path, only=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"trtexec is neither on PATH nor in {folder}: install NVIDIA's Debian package libnvinfer-bin" in done.stderr
    assert not (copy / "engines" / "by-commands").exists()
    recorder(folder, "trtexec")
    assert run_script(copy, "tensorrt-10.3", path=path, only=True).returncode == 0
    assert len(calls_of(folder)) == 4


@pytest.mark.parametrize(("label", "trt"), [("tensorrt-10.3", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_missing_modules(copy: Path, tmp_path: Path, label: str, trt: str) -> None:
    """In the Python of the command polygraphy, else in python3; stand-ins for modules lie in a folder of this test."""
    path = bare(tmp_path / "bare")

    def said(step: str = "compare") -> str:
        done = run_script(copy, label, step, path=path, only=True)
        assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    everything = f"polygraphy onnxruntime {trt}"
    assert f"missing here: {everything} (no command polygraphy on PATH); pip install 'polygraphy>=0.50'" in said()
    program(path, "polygraphy", "exit 9\n")
    assert f"missing here: {everything}; pip install" in said()  # no python3 either
    modules = tmp_path / "modules"
    modules.mkdir()
    python = program(tmp_path, "python-of-this-test", f'PYTHONPATH="{modules}" exec "{sys.executable}" -S "$@"\n')
    program(path, "polygraphy", "").write_text(f"#!{python}\n")
    assert f"missing here: {everything}; pip install" in said()
    (modules / "polygraphy.py").touch()
    (modules / f"{trt}.py").touch()
    assert "missing here: onnxruntime; pip install" in said()
    assert "onnxruntime 1.31 needs Python 3.11 or newer" in said()
    assert ("JetPack 6" in said()) == (trt == "tensorrt")
    (modules / "onnxruntime.py").touch()
    assert f"by-commands/{label}/vision_encoder.engine; build first: bash engines/commands-{label}.sh build" in said()
    if trt == "tensorrt_rtx":
        (modules / f"{trt}.py").unlink()
        assert "build needs Python modules that are missing here: tensorrt_rtx; pip" in said("build")
