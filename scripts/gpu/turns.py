"""Contenders in processes of their own that take turns, so that a machine's drift stays out of their ratios.

One that fails or takes too long is left out with the reason; the others go on.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from scripts.gpu.progress import Clock

_POLL_S = 0.02


@dataclass(frozen=True)
class Task:
    """What every contender runs: greedy tokens, end tokens ignored.

    Args:
        picture: file of the one picture.
        device: as torch names it.
        dtype: of weights and activations.
    """

    picture: str
    prompt: str
    new_tokens: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Contender:
    """Something to time: ``opener`` is ``"module:function"``, called in the worker as function(target, task) -> Runner."""

    name: str
    opener: str
    target: dict[str, str]


class Runner(Protocol):
    """What an opener returns, in the worker."""

    def run(self) -> dict[str, float]:
        """One timed request: metric -> milliseconds."""

    def describe(self) -> dict[str, Any]:
        """What else is known after at least one run, as JSON; not timed."""


@dataclass
class Outcome:
    """One contender.

    Args:
        details: of Runner.describe.
        values: metric -> every measured run.
        load_s: seconds that opening and warming up took in its process.
        memory: bytes of device memory it holds when warm; None where there is no device.
        peak_memory: largest number of bytes seen while it was loaded and warmed up, by sampling.
        error: why it was left out.
    """

    name: str
    details: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    load_s: float | None = None
    memory: int | None = None
    peak_memory: int | None = None
    error: str | None = None


class _Failed(Exception):
    """A contender cannot go on."""


@dataclass
class _Worker:
    outcome: Outcome
    process: BaseProcess
    connection: Connection

    def receive(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The worker's next answer; calls ``meanwhile`` again and again until it comes."""
        deadline = time.monotonic() + seconds
        try:
            while not self.connection.poll(_POLL_S):
                meanwhile()
                if time.monotonic() > deadline:
                    raise _Failed("out of time")
            answer: dict[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(timeout=5)
            raise _Failed(f"its process died with exit code {self.process.exitcode}") from None
        if "error" in answer:
            raise _Failed(answer["error"])
        return answer

    def end(self) -> None:
        """Asks it to end, without waiting."""
        with contextlib.suppress(OSError):
            self.connection.send("end")
        self.connection.close()

    def close(self) -> None:
        self.process.join(timeout=10)
        self.process.kill()
        self.process.join()


def take_turns(
    contenders: Sequence[Contender],
    task: Task,
    *,
    repeats: int,
    together: bool,
    used_memory: Callable[[], int | None],
    clock: Clock,
) -> list[Outcome]:
    """Load contenders, warm them up, time them.

    Args:
        together: all are loaded at once and run in turn; else one after the other, and ratios carry the machine's drift.
        used_memory: bytes in use on the device, by everybody; None where there is none.
    """
    groups = [list(contenders)] if together else [[contender] for contender in contenders]
    return [outcome for group in groups for outcome in _group(group, task, repeats, used_memory, clock)]


def _group(
    contenders: Sequence[Contender], task: Task, repeats: int, used_memory: Callable[[], int | None], clock: Clock
) -> list[Outcome]:
    workers: list[_Worker] = []
    try:
        at_once = used_memory() is None  # else one after the other, so that memory can be told apart
        for contender in contenders:
            workers.append(_start(contender, task))
            if not at_once:
                _guarded(workers[-1], lambda worker: _warm_up(worker, used_memory, clock), clock)
        for worker in workers if at_once else ():
            _guarded(worker, lambda worker: _warm_up(worker, used_memory, clock), clock)
        for turn in range(repeats):
            clock.say(f"run {turn + 1} of {repeats}")
            for worker in workers:
                _guarded(worker, lambda worker: _measure(worker, clock), clock)
        return [worker.outcome for worker in workers]
    finally:
        for worker in workers:  # all of them first: leaving takes a process a while
            worker.end()
        for worker in workers:
            worker.close()


def _start(contender: Contender, task: Task) -> _Worker:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, contender, task), daemon=True)
    process.start()
    theirs.close()
    return _Worker(Outcome(contender.name), process, ours)


def _guarded(worker: _Worker, step: Callable[[_Worker], None], clock: Clock) -> None:
    if worker.outcome.error is not None:
        return
    try:
        step(worker)
    except _Failed as failure:
        worker.outcome.error = str(failure)
        clock.say(f"{worker.outcome.name}: {failure}")
        worker.process.kill()  # its memory is needed by the others


def _warm_up(worker: _Worker, used_memory: Callable[[], int | None], clock: Clock) -> None:
    outcome, before = worker.outcome, used_memory()
    clock.say(f"loading {outcome.name}")
    peak = before or 0

    def sample() -> None:
        nonlocal peak
        peak = max(peak, used_memory() or 0)

    answer = worker.receive(clock.remaining_s, sample)
    outcome.load_s, outcome.details = answer["load_s"], answer["details"]
    after = used_memory()
    if before is not None and after is not None:
        outcome.memory, outcome.peak_memory = after - before, max(peak, after) - before


def _measure(worker: _Worker, clock: Clock) -> None:
    try:
        worker.connection.send("run")
    except OSError:
        raise _Failed("its process died") from None
    for metric, value in worker.receive(clock.remaining_s)["values"].items():
        worker.outcome.values.setdefault(metric, []).append(value)


def _work(connection: Connection, contender: Contender, task: Task) -> None:
    """In the worker's process."""
    try:
        started = time.monotonic()
        module, _, function = contender.opener.partition(":")
        runner: Runner = getattr(importlib.import_module(module), function)(contender.target, task)
        runner.run()
        runner.run()  # engines choose and compile kernels in the first run, and some capture a graph in the second
        load_s = time.monotonic() - started
        connection.send({"load_s": load_s, "details": runner.describe()})
        while connection.recv() == "run":
            connection.send({"values": runner.run()})
    except (EOFError, KeyboardInterrupt):
        pass  # the parent is gone or was interrupted
    except Exception as error:  # engines raise what they like
        text = " ".join(str(error).split())[:500]
        with contextlib.suppress(OSError):
            connection.send({"error": f"{type(error).__name__}: {text}"})
