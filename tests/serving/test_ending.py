"""Signals at every moment of a server's life: what was loaded is closed, and nothing is on standard error but its log."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sts_export.cli.commands import serve
from sts_export.serving import logs, server
from sts_export.serving.connections import ServerConfig
from sts_export.serving.server import Place
from sts_export.serving.settings import Settings
from tests.support.mixed_requests import Opened
from tests.support.scheduling.gates import PATIENCE

# A model whose loading and closing the test lets through, line by line.
_SERVER = """
import sys
from types import SimpleNamespace
from contextlib import suppress
from sts_export.cli.signals import Terminated, terminable
from sts_export.serving.logs import start_logging
from sts_export.serving.connections import ServerConfig
from sts_export.serving.server import Place, serve
from sts_export.serving.service import Engine, Service
from sts_export.serving.settings import Settings

def load():
    print("loading", flush=True)
    sys.stdin.readline()
    load = SimpleNamespace(slots=1, running=0, waiting=0)
    scheduler = SimpleNamespace(load=load, is_open=True, close=lambda drain: print("scheduler closed", flush=True))
    closed = lambda: print("pipeline closed", flush=True)
    pipeline = SimpleNamespace(close=closed, feature_lookups=(0, 0), selection_lookups=(0, 0))
    return Engine(pipeline, scheduler)

start_logging()
with terminable(), suppress(KeyboardInterrupt, Terminated):
    serve(Service(Settings("m")), load, lambda url: b"", Place(port=0, drain=float(sys.argv[1])))
print("end", flush=True)
"""
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _started(drain: int = 1) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(drain)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    return process


def _is_in_order(process: subprocess.Popen[str]) -> None:
    said, log = process.communicate("\n", timeout=PATIENCE)
    assert said.splitlines() == ["scheduler closed", "pipeline closed", "end"], said + log
    assert process.returncode == 0
    assert all(json.loads(line)["level"] == "info" for line in log.splitlines())


@pytest.mark.parametrize("number", _ENDS)
def test_a_signal_when_it_is_ready(number: signal.Signals) -> None:
    with _started() as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert json.loads(process.stderr.readline())["message"] == "ready"
        process.send_signal(number)
        _is_in_order(process)


@pytest.mark.parametrize("number", _ENDS)
def test_a_signal_while_it_loads(number: signal.Signals) -> None:
    """It waits for the model, and closes it."""
    with _started() as process:
        assert process.stderr is not None
        process.send_signal(number)
        assert "waiting until the model is loaded" in process.stderr.readline()
        _is_in_order(process)


_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    b"Content-Type: application/json\r\n\r\n"
)


@pytest.mark.parametrize("option", [[], ["--drain", "7"]])
def test_seconds_for_answers_at_the_end_are_the_operators(
    option: list[str], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Place] = []
    monkeypatch.setattr(server, "serve", lambda service, load, picture, place: places.append(place))
    monkeypatch.setattr(logs, "start_logging", lambda: None)
    serve.action(serve.make_parser().parse_args([str(opened("llava").bundle.folder), "--port", "0", *option]))
    assert [place.drain for place in places] == [7 if option else 30]
    assert ServerConfig(None, Settings("m"), places[0].drain).timeout_graceful_shutdown == places[0].drain


@contextmanager
def _half_sent(port: int) -> Iterator[socket.socket]:
    """A request whose head is there; the server waits for its body."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(_HEAD)
        assert b"100 Continue" in sock.recv(4096)
        yield sock


def test_an_answer_has_these_seconds() -> None:
    """A body that comes some seconds after the signal is still answered."""
    with _started(drain=int(PATIENCE)) as process:
        port = _is_ready(process)
        with _half_sent(port) as sock:
            process.send_signal(signal.SIGTERM)
            _is_closed(port)
            threading.Event().wait(2.5)  # more than the least, which is a second
            sock.sendall(b"{}")
            with sock.makefile("rb") as answer:
                assert b" 400 " in answer.readline()
        process.communicate(timeout=PATIENCE)


def test_a_second_interrupt_waits_for_no_answer() -> None:
    """Who waits is told, and the log has no traceback."""
    with _started(drain=int(PATIENCE)) as process:
        port = _is_ready(process)
        with _half_sent(port) as sock:
            process.send_signal(signal.SIGINT)
            _is_closed(port)
            process.send_signal(signal.SIGINT)
            with sock.makefile("rb") as answer:
                assert b" 503 " in answer.read()
        _is_in_order(process)


def _is_closed(port: int) -> None:
    """The server has seen the signal."""
    with pytest.raises(ConnectionError):
        while True:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()


def _is_ready(process: subprocess.Popen[str]) -> int:
    """Its port."""
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return int(json.loads(process.stderr.readline())["address"].rpartition(":")[2])


def test_a_client_that_is_cut_off() -> None:
    """Its answer is OpenAI's error object, and no line of the log is a traceback."""
    with _started() as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("\n")
        process.stdin.flush()
        port = int(json.loads(process.stderr.readline())["address"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
            assert b"100 Continue" in sock.recv(4096)  # its body is waited for
            process.send_signal(signal.SIGTERM)
            with sock.makefile("rb") as answer:
                received = answer.read()
        said, log = process.communicate(timeout=PATIENCE)
    assert b" 503 " in received and b'"code":"draining"' in received
    assert process.returncode == 0 and said.endswith("end\n") and "Traceback" not in log
