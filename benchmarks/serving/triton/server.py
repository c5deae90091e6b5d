"""Triton on the repository that `sts-export triton --link` writes, started by the repository's own program."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

import httpx

from benchmarks.serving.triton.home import HOME, server, variables
from sts_export.triton.repository.options import RepositoryOptions
from sts_export.triton.repository.writing import write_repository

_HOST = "127.0.0.1"
_PATIENCE = 600.0  # seconds until it is ready, and for its end


def repository(bundle: Path, output: Path, model: str, slots: int, *, reuse: str) -> Path:
    """Write it; ``reuse`` as for `serve`: none, pictures or all."""
    write_repository(
        RepositoryOptions(
            bundle,
            output,
            model,
            slots=slots,
            feature_cache=0 if reuse == "none" else None,
            reuse_prefixes=reuse == "all",
            link=True,
        )
    )
    return output


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The server's process, its address for gRPC and its version, from the time that the model is ready.

    Raises:
        RuntimeError: it ended, or was not ready in time, with the end of what it said.
    """
    name = f"sts-{uuid4().hex}-"
    ports = _free_ports()
    options = [
        f"--backend-directory={HOME / 'backends'}",
        f"--id={name}",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=30",
    ]
    options += [f"--backend-config=python,shm-region-prefix-name={name}"]
    for service, port in ports.items():
        options += [f"--{service}-address={_HOST}", f"--{service}-port={port}"]
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(folder / "run-server"), str(server()), *options],
            env=variables(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,  # stubs stay in its group, whatever becomes of it
        )
        try:
            version = _ready(process, f"http://{_HOST}:{ports['http']}", name, Path(f"/proc/self/fd/{log.fileno()}"))
            yield process, f"{_HOST}:{ports['grpc']}", version
        finally:
            _end(process, name)


def _ready(process: subprocess.Popen[str], address: str, name: str, log: Path) -> str:
    deadline = time.monotonic() + _PATIENCE
    with httpx.Client(base_url=address, timeout=10, trust_env=False) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.HTTPError, json.JSONDecodeError):
                about = client.get("/v2").json()
                # The name tells it from another server that took the port.
                if about["name"] == name and client.get("/v2/health/ready").status_code == 200:
                    return str(about["version"])
            time.sleep(0.05)
    raise RuntimeError(f"tritonserver ended, or is not ready: {log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[str], name: str) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for region in Path("/dev/shm").glob(f"{name}*"):
        region.unlink(missing_ok=True)


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        services = ("http", "grpc", "metrics")
        return {name: stack.enter_context(socket.create_server((_HOST, 0))).getsockname()[1] for name in services}
