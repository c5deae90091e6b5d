"""Tests that this machine cannot run are skipped, and the summary says what is absent."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest


@cache
def _gpus() -> str:
    """What nvidia-smi lists; empty without a GPU or a driver."""
    if shutil.which("nvidia-smi") is None:
        return ""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.strip() if listed.returncode == 0 else ""


def pytest_configure() -> None:
    """Whoever starts tests in the background (nohup, a shell's &) ignores signals, and so would the commands under test."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _gpus():
        pytest.skip("no NVIDIA GPU: nvidia-smi lists none")


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """For what changes their number."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is in a circle of references stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
