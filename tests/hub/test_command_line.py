"""Exports from a hub through the command line."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from sts_export.cli import main
from sts_export.demo import MODEL_DIR
from sts_export.families import aliases
from tests.hub.fake_hub import FakeHub
from tests.hub.helpers import (
    FIRST,
    MODEL,
    process,
)

# The command line


def run(hub: FakeHub, cache: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    running = process(hub, cache, *arguments, **environment)
    out, err = running.communicate(timeout=60)
    return running.returncode, out, err


def test_export_from_the_hub(tmp_path: Path, hub: FakeHub) -> None:
    hub.files = {file.name: file.read_bytes() for file in MODEL_DIR.iterdir()} | {"pytorch_model.bin": b"pickle"}
    cache = tmp_path / "cache"
    code, out, err = run(hub, cache, "--model", MODEL, "--budget", "64", "--output", "bundle")
    assert (code, err) == (0, "")  # no progress bars: stderr is no terminal
    assert "576 visual tokens" in out and (tmp_path / "bundle" / "manifest.json").is_file()
    assert not hub.asked_for() & {"README.md", "pytorch_model.bin"}
    hub.requests.clear()
    code, _, err = run(hub, cache, "--model", MODEL, "--budget", "32", "--output", "other", HF_HUB_OFFLINE="1")
    assert (code, err, hub.requests) == (0, "", [])


@pytest.mark.parametrize("base", [MODEL, str(MODEL_DIR)], ids=["adapter-in-a-folder", "adapter-on-the-hub"])
def test_adapter_and_base_are_found_apart(tmp_path: Path, hub: FakeHub, base: str) -> None:
    """One of them on the hub, the other in a folder; offline both are found again."""
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    factors = {f"{name}.lora_A.weight": np.ones((1, 160), np.float32), f"{name}.lora_B.weight": np.ones((160, 1), np.float32)}
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": base}
    files = {"adapter_config.json": json.dumps(settings).encode(), "adapter_model.safetensors": save(factors)}
    model, cache = MODEL, tmp_path / "cache"
    if base == MODEL:
        model = "adapter"
        (tmp_path / "adapter").mkdir()
        for file, value in files.items():
            (tmp_path / "adapter" / file).write_bytes(value)
        files = {file.name: file.read_bytes() for file in MODEL_DIR.iterdir()}
    hub.files = files
    code, _, err = run(hub, cache, "--model", model, "--budget", "64", "--output", "bundle")
    assert code == 0 and err.startswith("note: the LoRA adapter in ") and "into 1 tensor(s) of " in err
    q = "language_model.model.layers.0.self_attn.q_proj.weight"
    merged, plain = load_file(tmp_path / "bundle" / "weights.safetensors")[q], load_file(MODEL_DIR / "model.safetensors")[q]
    np.testing.assert_allclose(merged, plain.astype(np.float32) + 2, rtol=1e-3)
    hub.requests.clear()
    again = ("--model", model, "--budget", "64", "--output", "again")
    code, _, _ = run(hub, cache, *again, HF_HUB_OFFLINE="1")
    assert (code, hub.requests) == (0, [])


def test_errors_on_the_command_line(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults.cut, hub.faults.cut_error = {FIRST: 120_000}, "down"
    code, out, err = run(hub, tmp_path / "cache")
    assert (code, out, err.count("\n")) == (1, "", 1)  # no log lines of huggingface_hub
    assert err.startswith("sts-export: the hub failed to deliver org/name (503)")


def test_progress_bars_on_a_terminal(tmp_path: Path, hub: FakeHub) -> None:
    terminal, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    code = "from sts_export.hub import locate_model; locate_model('org/name')"
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ | settings, stderr=child, cwd=tmp_path) as running:
        os.close(child)
        shown = b""
        while chunk := read_terminal(terminal):
            shown += chunk
    os.close(terminal)
    assert running.returncode == 0
    assert FIRST.encode() in shown and b"100%" in shown


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_help_names_the_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(alias in shown for alias in aliases())
