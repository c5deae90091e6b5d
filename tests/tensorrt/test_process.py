"""Workers start wherever the user stands: in a checkout, or among files named like modules of ours or of the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.tensorrt.process import python_command
from tests.support.bundles import copy_of


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder like a checkout whose sts_export is not the installed one, beside other traps."""
    folder = tmp_path / "trap"
    for name in ("sts_export/__init__.py", "json.py", "onnx_ir.py", "tensorrt_rtx.py"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise ImportError('of the current folder')\n")
    return folder


@pytest.mark.parametrize("module", ["sts_export.tensorrt.worker", "sts_export.verification.engines"])
def test_a_worker_finds_the_installed_package(module: str, trap: Path) -> None:
    """Without a job it ends with an error of its own."""
    done = subprocess.run(python_command(module), cwd=trap, input="", capture_output=True, text=True)
    assert "of the current folder" not in done.stderr
    assert done.returncode == 1 and "JSONDecodeError" in done.stderr


def test_build_in_such_a_folder(bundle: Bundle, tmp_path: Path, trap: Path) -> None:
    copy = copy_of(bundle, tmp_path)
    command = Path(sys.executable).with_name("sts-export")
    done = subprocess.run(
        [command, "build", copy.folder, "--runtime", "tensorrt-rtx"], cwd=trap, capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(copy.folder.glob("engines/tensorrt-rtx/portable/*.engine"))) == 4
