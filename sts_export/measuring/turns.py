"""Time contenders against each other: each in its own process, taking turns.

Separate processes keep one's memory and threads out of another's figures; taking turns keeps a machine's drift out of their
ratio.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from sts_export.errors import StsExportError
from sts_export.measuring.memory import peak_rss_mb

_POLL_S = 0.02


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Args:
        opener: ``"module:function"``, called in the worker as function(target, task) -> Runner.
        imports: modules that the worker imports first.  Where a contender names any, all workers start, and import, at the
            same time, also if they load one after the other.
    """

    name: str
    opener: str
    target: Any
    imports: tuple[str, ...] = ()


class Runner(Protocol):
    """What an opener returns, in the worker."""

    def run(self) -> dict[str, float]:
        """One measured run: metric -> value."""

    def describe(self) -> dict[str, Any]:
        """What else is known after at least one run, as JSON; not timed."""


@dataclass
class Outcome:
    """One contender.

    Args:
        details: of Runner.describe.
        values: metric -> every measured run.
        load_s: seconds that opening took in its process, without ``Contender.imports`` and the warm-ups.
        peak_rss_mb: its process's largest resident set.
        memory: bytes of device memory it holds when warm; None where there is no device.
        peak_memory: largest number of bytes seen while it was loaded and warmed up, by sampling.
        error: why it was left out.
    """

    name: str
    details: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    load_s: float | None = None
    peak_rss_mb: float | None = None
    memory: int | None = None
    peak_memory: int | None = None
    error: str | None = None

    def medians(self) -> dict[str, float]:
        """Metric -> median of its measured runs."""
        return medians(self.values)


@dataclass(frozen=True)
class Rules:
    """How contenders are loaded and measured.

    Args:
        repeats: measured runs of each.
        warm_ups: runs before them.
        together: all are loaded before any is measured, and run in turn; else one after the other, and ratios carry the
            machine's drift.
        load_at_once: they load at the same time, where nobody asks how long that takes or how much memory it needs.
        leave_out: one that fails is left out with the reason, and the others go on; else its error is raised.
        used_memory: bytes in use on the device, by everybody; None where there is none.
        remaining_s: seconds that everything may still take.
        say: told what happens, one line at a time.
    """

    repeats: int
    warm_ups: int = 1
    together: bool = True
    load_at_once: bool = False
    leave_out: bool = False
    used_memory: Callable[[], int | None] = lambda: None
    remaining_s: Callable[[], float] = lambda: math.inf
    say: Callable[[str], None] = lambda text: None


def take_turns(contenders: Sequence[Contender], task: Any, rules: Rules) -> list[Outcome]:
    """Load contenders, warm them up, time them.

    Args:
        task: what every opener is given beside its target.

    Raises:
        StsExportError: a contender failed, unless ``rules.leave_out``; what it raised if that was one.
    """
    starts: list[Callable[[], _Worker]] = [partial(_start, contender, task, rules.warm_ups) for contender in contenders]
    started: list[_Worker] = []
    if any(contender.imports for contender in contenders):
        started = [start() for start in starts]
        starts = [partial(_started, worker) for worker in started]
    groups = [starts] if rules.together else [[start] for start in starts]
    try:
        return [outcome for group in groups for outcome in _group(group, rules)]
    except BaseException:
        for worker in started:  # those that wait for their turn, too
            worker.process.kill()
        raise


def alternate(contenders: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Call each in turn, ``repeats`` times: name -> metric -> every value.  For what starts processes of its own."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            _record(values[name], run())
    return values


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of every metric."""
    return {metric: statistics.median(runs) for metric, runs in values.items()}


def _record(values: dict[str, list[float]], run: Mapping[str, float]) -> None:
    for metric, value in run.items():
        values.setdefault(metric, []).append(value)


class _Failed(Exception):
    """A contender cannot go on; ``error`` is what it raised, if that can be raised again."""

    def __init__(self, reason: str, error: StsExportError | None = None) -> None:
        super().__init__(reason)
        self.error = error


@dataclass
class _Worker:
    outcome: Outcome
    process: BaseProcess
    connection: Connection
    memory_before: int | None = None

    def send(self, message: str) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise _Failed("its process died") from None

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
            raise _Failed(answer["error"], answer["exception"])
        return answer

    def close(self) -> None:
        self.process.join(timeout=10)
        self.process.kill()
        self.process.join()


def _group(starts: Sequence[Callable[[], _Worker]], rules: Rules) -> list[Outcome]:
    workers: list[_Worker] = []
    try:
        for start in starts:
            workers.append(start())
            _guarded(workers[-1], rules, _load)
            if not rules.load_at_once:
                _guarded(workers[-1], rules, _warm_up)
        for worker in workers if rules.load_at_once else ():
            _guarded(worker, rules, _warm_up)
        for turn in range(rules.repeats):
            rules.say(f"run {turn + 1} of {rules.repeats}")
            for worker in workers:
                _guarded(worker, rules, _measure)
        for worker in workers:
            _guarded(worker, rules, _end)
        return [worker.outcome for worker in workers]
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise
    finally:
        for worker in workers:  # all of them first: leaving takes a process a while
            worker.connection.close()
        for worker in workers:
            worker.close()


def _start(contender: Contender, task: Any, warm_ups: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, contender, task, warm_ups), daemon=True)
    process.start()
    theirs.close()
    return _Worker(Outcome(contender.name), process, ours)


def _started(worker: _Worker) -> _Worker:
    return worker


def _guarded(worker: _Worker, rules: Rules, step: Callable[[_Worker, Rules], None]) -> None:
    if worker.outcome.error is not None:
        return
    try:
        step(worker, rules)
    except _Failed as failure:
        if not rules.leave_out:
            raise failure.error or StsExportError(
                f"{worker.outcome.name} could not be measured: {failure}; run it alone to see why"
            ) from None
        worker.outcome.error = str(failure)
        rules.say(f"{worker.outcome.name}: {failure}")
        worker.process.kill()  # its memory is needed by the others


def _load(worker: _Worker, rules: Rules) -> None:
    rules.say(f"loading {worker.outcome.name}")
    worker.memory_before = rules.used_memory()
    with contextlib.suppress(_Failed):  # what it failed at is read by the next step
        worker.send("load")


def _warm_up(worker: _Worker, rules: Rules) -> None:
    outcome, before = worker.outcome, worker.memory_before
    peak = before or 0

    def sample() -> None:
        nonlocal peak
        peak = max(peak, rules.used_memory() or 0)

    answer = worker.receive(rules.remaining_s(), sample)
    outcome.load_s, outcome.details = answer["load_s"], answer["details"]
    after = rules.used_memory()
    if before is not None and after is not None:
        outcome.memory, outcome.peak_memory = after - before, max(peak, after) - before


def _measure(worker: _Worker, rules: Rules) -> None:
    worker.send("run")
    _record(worker.outcome.values, worker.receive(rules.remaining_s())["values"])


def _end(worker: _Worker, rules: Rules) -> None:
    worker.send("end")
    worker.outcome.peak_rss_mb = worker.receive(rules.remaining_s())["peak_rss_mb"]


def _work(connection: Connection, contender: Contender, task: Any, warm_ups: int) -> None:
    """In the worker's process."""
    try:
        for name in contender.imports:
            importlib.import_module(name)
        if connection.recv() != "load":
            return
        started = time.monotonic()
        module, _, function = contender.opener.partition(":")
        runner: Runner = getattr(importlib.import_module(module), function)(contender.target, task)
        load_s = time.monotonic() - started
        for _ in range(warm_ups):
            runner.run()
        connection.send({"load_s": load_s, "details": runner.describe()})
        while connection.recv() == "run":
            connection.send({"values": runner.run()})
        connection.send({"peak_rss_mb": peak_rss_mb()})
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone or was interrupted; it reports
    except Exception as error:  # engines raise what they like
        text = " ".join(str(error).split())[:500]
        known = error if isinstance(error, StsExportError) else None
        with contextlib.suppress(OSError):
            connection.send({"error": f"{type(error).__name__}: {text}", "exception": known})
