"""The process in which an engine is built."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sts_export.errors import BackendError
from sts_export.files import PARTS
from sts_export.tensorrt.worker import BuildJob, NoEngineError

# (graph, phase, done, total); called with phase "up to date" for an engine that need not be built.
BuildProgress = Callable[[str, str, int, int], None]

_WORKER = "sts_export.tensorrt.worker"


def python_command(module: str) -> list[str]:
    """A new interpreter that runs ``main`` of a module of this package.

    -P keeps the current folder from being searched for modules: it may be a checkout, or hold anything.
    """
    return [sys.executable, "-P", "-c", f"import sys; from {module} import main; sys.exit(main())"]


def run_worker(name: str, job: BuildJob, progress: BuildProgress | None) -> bool:
    """Build one engine; whether its caches are aliased.  An interrupt ends the worker, and leaves no half-written file.

    Raises:
        NoEngineError: what the worker says went wrong.
        BackendError: it ended without a word.
    """
    with (
        tempfile.TemporaryFile() as noise,  # a pipe that nobody reads while it works would fill and block it
        subprocess.Popen(
            python_command(_WORKER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            outcome = None
            for line in process.stdout:
                said = json.loads(line)
                if "phase" in said:
                    if progress:
                        progress(name, said["phase"], said["done"], said["total"])
                else:
                    outcome = said
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            for part in Path(job.output).parent.glob(PARTS):
                part.unlink(missing_ok=True)
            raise
        noise.seek(0)
        last = " ".join(noise.read().decode(errors="replace").split())[-300:]
    if outcome is None:
        advice = (
            "not enough memory is the usual reason: build on a machine with more, or with --optimization-level 1"
            if code < 0
            else "please report this"
        )
        raise BackendError(f"building {name} ended without a result (exit code {code}{f': {last}' if last else ''}); {advice}")
    if "error" in outcome:
        raise NoEngineError(outcome["error"], decomposable=outcome["decomposable"])
    return bool(outcome["result"]["aliased_caches"])
