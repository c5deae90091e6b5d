"""The probe answers on any machine, also where its process dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.gpu.machine import tensorrt_rtx_probe


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_gpu() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    answer = tensorrt_rtx_probe.probe()
    assert answer["built"] and not answer["ran"] and not answer["right"]
    assert answer["error"] == "there is no CUDA GPU here (torch sees none)"


def test_without_tensorrt_rtx(tmp_path: Path) -> None:
    """An interpreter that finds no tensorrt_rtx, because an empty one comes first."""
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('not for this machine')")
    first = "import sys; sys.path.insert(0, sys.argv[1])"
    code = f"{first}; from scripts.gpu.machine import tensorrt_rtx_probe as p; print(p._try()['error'])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert done.stdout.strip() == "ImportError: not for this machine"
