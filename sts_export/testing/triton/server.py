"""A real Triton server on a model repository, for as long as a test needs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import psutil

from sts_export.testing.triton.home import BACKENDS, ENVIRONMENT, LIBRARIES, SERVER

PATIENCE = 120.0  # seconds until a server must be ready, or have ended
HOST = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
TAKEN = "already in use"  # what the log says of a port that another process took in the meantime
LOG_TAIL = 4000  # characters
EXIT_TIMEOUT = 60  # seconds that a server waits for answers under way and for its models


@dataclass(frozen=True)
class Triton:
    """A server that runs.

    Attributes:
        http: host and port of the KServe API over HTTP, as tritonclient takes them.
        grpc: the same over gRPC.
        metrics: host and port of ``/metrics``.
        pid: the server's process, and its process group.
        log: what the server and its stub processes print; stays after the server.
        name: the server's id, and what the names of its shared-memory regions begin with.
    """

    http: str
    grpc: str
    metrics: str
    pid: int
    log: Path
    name: str

    @property
    def version(self) -> str:
        """Of Triton."""
        return str(json.loads(_get(self.http, "/v2")[1])["version"])

    @property
    def stubs(self) -> tuple[int, ...]:
        """The processes that run Python models now, one for each instance."""
        return tuple(process.pid for process in _group(self.pid) if process.pid != self.pid)

    @property
    def regions(self) -> tuple[Path, ...]:
        """The shared-memory regions that are there now."""
        return tuple(sorted(SHARED_MEMORY.glob(f"{self.name}*")))

    def get(self, path: str) -> int:
        """The HTTP status of a path, such as ``/v2/health/ready``; 0 where nobody listens."""
        return _get(self.http, path)[0]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels; 0 where none is there yet.

        Triton counts a request some time after its last answer has been sent.  Its counters' names do not end in ``_total``;
        the parser adds that.
        """
        from prometheus_client.parser import text_string_to_metric_families as families

        status, text = _get(self.metrics, "/metrics")
        assert status == 200, f"/metrics answers {status}"
        samples = [sample for family in families(text) for sample in family.samples]
        found = [sample for sample in samples if sample.name in (name, f"{name}_total")]
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


@contextmanager
def triton_server(
    repository: Path,
    *,
    models: Sequence[str] | None = None,
    explicit: bool = False,
    exit_on_error: bool = True,
    auto_complete: bool = False,
    script: Path | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Triton]:
    """Start a server, wait until it is ready, and stop it by SIGTERM.

    Args:
        repository: the folder of models; beside it a folder is made with the log.
        models: names of the models to load, which makes ``explicit`` true; None: all, or none if ``explicit``.
        explicit: models are loaded and unloaded by requests.
        exit_on_error: a model that does not load ends the server; else the server need only be alive, not ready.
        auto_complete: ask the models for what their config.pbtxt lacks; starts each one once more.
        script: the repository's own, which starts the server.
        extra: further arguments of tritonserver, which win over those above.

    Raises:
        AssertionError: the server ended or was not ready in time; it did not end by SIGTERM with 0; it ended with 0 and left
            a stub process or a shared-memory region.  A server that the test itself killed may leave them; they are removed.
    """
    options = [f"--exit-on-error={str(exit_on_error).lower()}"]
    command = [str(SERVER), f"--model-repository={repository}"] if script is None else [str(script), str(SERVER)]
    if explicit or models is not None:
        options += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in models or ())]
    if not auto_complete:
        options.append("--disable-auto-complete-config")
    place = Path(mkdtemp(prefix="triton-", dir=repository.parent))
    process, server = _start(command, [*options, *extra], place, "/v2/health/ready" if exit_on_error else "/v2/health/live")
    try:
        yield server
    except BaseException:
        _clean(process, server)
        raise
    _stop(process, server)


def _start(program: Sequence[str], options: Sequence[str], place: Path, path: str) -> tuple[subprocess.Popen[bytes], Triton]:
    for attempt in range(5):
        ports = _free_ports()
        name = f"sts-{uuid4().hex}-"
        log = place / f"server-{attempt}.log"
        command = [*program, f"--backend-directory={BACKENDS}", f"--id={name}", "--allow-gpu-metrics=false"]
        command += [f"--exit-timeout-secs={EXIT_TIMEOUT}", f"--backend-config=python,shm-region-prefix-name={name}"]
        for service, port in ports.items():
            command += [f"--{service}-address={HOST}", f"--{service}-port={port}"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *options],
                cwd=place,  # models find it on sys.path, so it is not the checkout
                env=_variables(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        addresses = {service: f"{HOST}:{port}" for service, port in ports.items()}
        server = Triton(**addresses, pid=process.pid, log=log, name=name)
        try:
            _wait(process, server, path)
        except BaseException:
            _clean(process, server)
            if process.returncode > 0 and TAKEN in _tail(log):
                continue
            raise
        return process, server
    raise AssertionError(f"tritonserver found its ports taken, five times:\n{_tail(log)}")


def _variables() -> dict[str, str]:
    """What lets the stubs find the models' environment: see scripts/triton_server/fetch."""
    paths = {"PATH": ENVIRONMENT / "bin", "LD_LIBRARY_PATH": LIBRARIES}
    found = {name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in paths.items()}
    return {**os.environ, **found}


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        services = ("http", "grpc", "metrics")
        return {name: stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for name in services}


def _wait(process: subprocess.Popen[bytes], server: Triton, path: str) -> None:
    """Triton starts gRPC, then HTTP, then the metrics.  The id tells it from another server that took the port."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"tritonserver ended with {process.returncode}:\n{_tail(server.log)}")
        status, text = _get(server.http, "/v2")
        ours = status == 200 and json.loads(text).get("name") == server.name
        if ours and server.get(path) == 200 and _get(server.metrics, "/metrics")[0] == 200:
            return
        time.sleep(0.05)
    raise AssertionError(f"tritonserver was not ready after {PATIENCE:.0f} s:\n{_tail(server.log)}")


def _stop(process: subprocess.Popen[bytes], server: Triton) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
        left = [f"process {pid}" for pid in server.stubs] + [str(region) for region in server.regions]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"tritonserver did not end by SIGTERM in {PATIENCE:.0f} s:\n{_tail(server.log)}") from None
    finally:
        _clean(process, server)
    if process.returncode == -signal.SIGKILL:
        return
    if process.returncode:
        raise AssertionError(f"tritonserver ended with {process.returncode}, not by SIGTERM with 0:\n{_tail(server.log)}")
    if left:
        raise AssertionError(f"tritonserver left {', '.join(left)}:\n{_tail(server.log)}")


def _clean(process: subprocess.Popen[bytes], server: Triton) -> None:
    """Leave nothing of the server, whatever its state."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while server.stubs and time.monotonic() < deadline:  # one that still dies has its region
        time.sleep(0.01)
    for region in server.regions:
        region.unlink(missing_ok=True)


def _group(leader: int) -> Iterator[psutil.Process]:
    """The living processes of a group: stubs keep it when their server is gone."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _get(address: str, path: str) -> tuple[int, str]:
    """Status and body; 0 where nobody listens.  Without the proxies that urllib would ask."""
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, HTTPException):
        return 0, ""
    finally:
        connection.close()


def _tail(log: Path) -> str:
    """The end of the log; its tables are as wide as their longest cell, so their blanks and rules are shortened."""
    return re.sub(r"([ -])\1{3,}", r"\1\1\1", log.read_text(encoding="utf-8", errors="replace"))[-LOG_TAIL:]
