"""Requests of many clients share the slots of one set of KV caches.

with Scheduler(pipeline, slots=8) as scheduler:
    answer = scheduler.submit(pipeline.prepare("What is on the table?", "cat.jpg"))
    for piece in answer:
        print(piece, end="")

One thread runs the engine.  Between two steps it admits at most one request, the one that has waited longest: answers under way
are never delayed by more than one prefill.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Literal

from sts_export.errors import BackendError, BusyError, RequestError, StsExportError
from sts_export.generation.pipeline import BATCH_SIZE, Pipeline
from sts_export.generation.scheduling.answers import Answer, Cancelled, Event, Failed, Finished, Piece, tell
from sts_export.generation.scheduling.prefixes import Pictures, Prefixes
from sts_export.generation.slots import Slot
from sts_export.generation.timing import milliseconds_since
from sts_export.requests.request import Request, check_count

MOST_WAITING = 64


@dataclass(frozen=True)
class Load:
    """Requests in slots, requests that wait for one, and slots."""

    running: int
    waiting: int
    slots: int


@dataclass(frozen=True)
class _Waiting:
    answer: Answer
    since: float
    pictures: Pictures


@dataclass
class _Running:
    """``told`` is how many tokens the pieces so far were made of."""

    answer: Answer
    queue_ms: float
    pictures: Pictures
    told: int = 0


@dataclass(frozen=True)
class _Orders:
    """What other threads want before the next step: who ends, and who comes in."""

    late: list[Answer]
    cancelled: set[Answer]
    first: _Waiting | None


class Scheduler:
    """Continuous batching over the slots of a pipeline's caches.

    An answer is the same alone and in any company, but that rows of pictures may stay as an earlier turn of the chat chose
    them, and rows after them are rounded otherwise (``reuse_prefixes``).  Of a float16 bundle on the CPU, answers with one
    slot, and those of :meth:`Pipeline.generate` for one prompt, may have another token where two are about as likely: a step
    of one row rounds otherwise.

    Threads may share a scheduler; events come from its own thread.

    Args:
        pipeline: stays open as long as the scheduler; it may be used beside it.
        slots: requests that run together; engines that were built for fewer limit it.
        most_waiting: requests that may wait for a slot; more are refused.
        longest_wait: seconds that a request may wait for a slot; None: as long as it takes.
        reuse_prefixes: what a slot holds of a request that is over is not computed again for the next turn of its chat
            (:mod:`.prefixes`), as long as nobody else has needed the slot.

    Raises:
        BackendError: the engine has no memory for the caches.
        RequestError: a number is wrong.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        slots: int = BATCH_SIZE,
        most_waiting: int = MOST_WAITING,
        longest_wait: float | None = None,
        reuse_prefixes: bool = False,
    ) -> None:
        check_count("slots", slots)
        check_count("most_waiting", most_waiting)
        if longest_wait is not None and not longest_wait > 0:
            raise RequestError(f"longest_wait must be seconds above 0, not {longest_wait}")
        self._pipeline, self._longest_wait, self._most_waiting = pipeline, longest_wait, most_waiting
        self._decoding = pipeline.decoding(slots)
        self._slots = self._decoding.slots
        self._prefixes = Prefixes(self._decoding, pipeline.manifest) if reuse_prefixes else None
        self._changed = threading.Condition()
        # Under the lock:
        self._waiting: deque[_Waiting] = deque()
        self._cancelled: set[Answer] = set()
        self._closing: Literal["no", "drain", "now"] = "no"
        # Of the thread alone:
        self._running: dict[Slot, _Running] = {}
        self._thread = threading.Thread(target=self._work, name="sts-export scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    @property
    def load(self) -> Load:
        """At this moment."""
        return Load(len(self._running), len(self._waiting), self._slots)

    def submit(self, request: Request, deliver: Callable[[Event], None] | None = None) -> Answer:
        """Wait for a slot, and be answered; returns at once.

        Args:
            request: of this scheduler's pipeline.
            deliver: as for :class:`Answer`.

        Raises:
            BusyError: as many requests wait as may, or the scheduler is closed.
        """
        answer, since = Answer(request, deliver), time.perf_counter()
        pictures = () if self._prefixes is None else self._prefixes.pictures_of(request)
        with self._changed:
            self.check_room()
            self._waiting.append(_Waiting(answer, since, pictures))
            self._changed.notify()
        return answer

    def check_room(self) -> None:
        """Raises BusyError where :meth:`submit` would now: before a picture is decoded for nothing."""
        if not self.is_open:
            raise BusyError("no more requests are taken: the scheduler is closed; send it again elsewhere or later")
        if len(self._waiting) >= self._most_waiting:
            raise BusyError(f"{len(self._waiting)} requests are waiting already; send it again later")

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._closing == "no"

    def cancel(self, answer: Answer) -> None:
        """Give a request up: at once while it waits, before the next step when it runs.  One that is over stays as it is."""
        with self._changed:
            waiting = next((one for one in self._waiting if one.answer is answer), None)
            if waiting is None:
                self._cancelled.add(answer)
                self._changed.notify()
            else:
                self._waiting.remove(waiting)
        if waiting is not None:
            tell(answer, Cancelled(0))

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, and return when none is left.

        Args:
            drain: answer those that were submitted; otherwise, or after ``timeout`` seconds, they are cancelled.
        """
        self._close("drain" if drain else "now")
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._close("now")
            self._thread.join()

    def _close(self, how: Literal["drain", "now"]) -> None:
        with self._changed:
            self._closing = how
            self._changed.notify()

    def _work(self) -> None:
        """Until all work is done; if this fails itself, readers are told so and nothing more is taken.

        Whatever it fails by: a panic of an extension in Rust is no Exception, and readers would wait for ever.
        """
        end: Failed | None = None
        try:
            self._serve()
        except BaseException as error:
            self._close("now")
            end = Failed(BackendError(f"the scheduler failed ({type(error).__name__}: {error}); open it again"))
        for slot, running in self._running.items():
            tell(running.answer, end or Cancelled(len(slot.tokens)))
        for waiting in self._waiting:  # nobody else changes it any more
            tell(waiting.answer, end or Cancelled(0))
        self._running.clear()
        self._waiting.clear()

    def _serve(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """One admission and one step; whether there may be another.  What was ordered is not held while it waits for more."""
        orders = self._orders()
        if orders is None:
            return False
        for answer in orders.late:
            tell(answer, Failed(BusyError(f"no slot was free for {self._longest_wait:g} s; send the request again later")))
        self._give_up(orders.cancelled)
        if orders.first is not None:
            self._start(orders.first)
        if self._running:
            self._step()
        return True

    def _orders(self) -> _Orders | None:
        """Waits for work; None: there is no more."""
        with self._changed:
            while not (self._waiting or self._running or self._cancelled or self._closing != "no"):
                self._changed.wait()
            if self._closing == "now" or (self._closing == "drain" and not self._waiting and not self._running):
                return None
            late = []
            while self._waiting and self._is_late(self._waiting[0]):
                late.append(self._waiting.popleft().answer)
            cancelled, self._cancelled = self._cancelled, set()
            has_room = self._decoding.has_room or not self._running
            first = self._waiting.popleft() if self._waiting and has_room else None
            return _Orders(late, cancelled, first)

    def _is_late(self, waiting: _Waiting) -> bool:
        return self._longest_wait is not None and time.perf_counter() - waiting.since > self._longest_wait

    def _start(self, waiting: _Waiting) -> None:
        """The prefill and the first token."""
        queue_ms = milliseconds_since(waiting.since)
        try:
            if self._decoding.lost and not self._running:
                self._decoding = self._pipeline.decoding(self._slots)
                if self._prefixes is not None:
                    self._prefixes = Prefixes(self._decoding, self._pipeline.manifest)
            slot = self._add(waiting)
        except StsExportError as error:
            tell(waiting.answer, Failed(copy(error)))
            return
        except BaseException as error:
            tell(waiting.answer, Failed(BackendError(f"the request could not be run ({type(error).__name__}: {error})")))
            raise
        self._running[slot] = _Running(waiting.answer, queue_ms, waiting.pictures)
        self._settle(slot)

    def _add(self, waiting: _Waiting) -> Slot:
        request = waiting.answer.request
        if self._prefixes is None:
            return self._decoding.add(request)
        place = self._prefixes.place(request, waiting.pictures)
        return self._decoding.add(request, place.number, place.earlier)

    def _step(self) -> None:
        """One token for all that run."""
        with suppress(BackendError):  # each of them has it as its own error
            self._decoding.step()
        for slot in list(self._running):
            self._settle(slot)

    def _settle(self, slot: Slot) -> None:
        """Tell what the newest token brought."""
        running = self._running[slot]
        told = not slot.piece or self._tell_piece(slot, running)
        if slot.error is not None:
            tell(running.answer, Failed(slot.error))
        elif slot.reason is not None:
            tell(running.answer, self._end(slot, running.queue_ms))
        elif told:
            return
        self._free(slot)

    def _free(self, slot: Slot) -> None:
        """Whoever is over or given up leaves; unless its engine failed, its rows are right, and may serve another turn."""
        running = self._running.pop(slot)
        self._decoding.free(slot)
        if self._prefixes is not None and not isinstance(slot.error, BackendError):
            self._prefixes.keep(slot, running.pictures)

    def _tell_piece(self, slot: Slot, running: _Running) -> bool:
        piece = Piece(slot.piece, len(slot.tokens), tuple(slot.logprobs[running.told :]))
        running.told = piece.tokens
        return tell(running.answer, piece)

    def _end(self, slot: Slot, queue_ms: float) -> Finished | Failed:
        try:
            return Finished(self._decoding.result(slot), queue_ms)
        except BackendError as error:
            return Failed(copy(error))

    def _give_up(self, answers: set[Answer]) -> None:
        for slot, running in list(self._running.items()):
            if running.answer in answers:
                self._free(slot)
                tell(running.answer, Cancelled(len(slot.tokens)))
