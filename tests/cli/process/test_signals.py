"""A command that is told to end removes what it has half written, and says so in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sts_export.cli import main
from sts_export.cli.signals import Terminated, terminable
from tests.cli.helpers import Work, tree

# The command line, which says when it is about to write the manifest, and then takes its time.
_SLOW = """
import sys, time
from sts_export.exporting import exporter
from sts_export.cli import main
def slow(*_):
    print("writing", flush=True)
    time.sleep(60)
exporter.write_manifest = slow
sys.exit(main(sys.argv[1:]))
"""

# A benchmark whose process is told to end while its workers are busy.
_BUSY = """
import signal, sys
from sts_export.measuring import turns
from sts_export.cli import main
send = turns._Worker.send
def told(*args):
    send(*args)
    signal.raise_signal(int(sys.argv[1]))
turns._Worker.send = told
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""


def start(work: Work, *before: str) -> subprocess.Popen[str]:
    """An export that has written everything but the manifest."""
    command = [*before, sys.executable, "-c", _SLOW, *work.export()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    assert any(".partial-" in name for name in tree(work.folder))
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_export_that_is_told_to_end_leaves_nothing(work: Work, number: signal.Signals) -> None:
    process = start(work)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert (process.returncode, errors) == (128 + number, f"sts-export: {said}\n")
    assert tree(work.folder) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_benchmark_that_is_told_to_end(work: Work, number: signal.Signals) -> None:
    """Its workers, which have the same standard error, say nothing and end with it."""
    command = [sys.executable, "-c", _BUSY, str(int(number)), "bench", work.bundle, "--against", work.bundle]
    done = subprocess.run([*command, "--max-new-tokens=3"], capture_output=True, text=True, timeout=120)
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"sts-export: {said}\n")


def test_nohup_stays_nohup(work: Work) -> None:
    process = start(work, "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and tree(work.folder) == set()


def test_the_next_export_removes_what_a_killed_one_left(work: Work) -> None:
    process = start(work)
    process.kill()
    process.communicate(timeout=60)
    assert any(".partial-" in name for name in tree(work.folder))
    assert main(work.export()) == 0
    assert list(Path(work.output).parent.iterdir()) == [Path(work.output)]


def test_a_second_signal_does_not_disturb_the_clean_up() -> None:
    cleaned = False
    with pytest.raises(Terminated, match="ended by SIGTERM"), terminable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleaned = True
    assert cleaned


def test_neither_does_one_that_comes_while_the_clean_up_handles_an_error() -> None:
    def half_done() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGTERM)

    cleaned = False
    with pytest.raises(Terminated, match="ended by SIGHUP"), terminable():
        try:
            steps = half_done()
            next(steps)
            signal.raise_signal(signal.SIGHUP)
        finally:
            try:
                raise OSError
            except OSError:
                signal.raise_signal(signal.SIGTERM)
            del steps
            cleaned = True
    assert cleaned


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finalizer_swallows_is_not_the_last() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated), terminable():
        Finalized()
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second one was ignored")


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_program_with_a_handler_of_its_own_keeps_it() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with terminable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_in_a_thread_commands_run_without_handlers(work: Work) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect", work.bundle, "--json"])))
    thread.start()
    thread.join()
    assert codes == [0]
