"""Requests of Triton's clients in one scheduler.

Threads: Triton's own takes requests and never waits; a few prepare them (fetch and decode pictures); the scheduler's runs the
engine; one sends responses, so that the engine does not wait for Triton; one looks for clients that have gone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol

from sts_export.errors import RequestError, StsExportError
from sts_export.generation.scheduling.answers import Event, Failed, Finished, Piece
from sts_export.serving.api.chat import chat_request, read_pictures
from sts_export.serving.pictures.reading import picture_bytes
from sts_export.serving.problems import BROKEN, DRAINING, GONE, Problem, ProblemError, problem_of
from sts_export.serving.service import Engine
from sts_export.triton.model.incoming import parameters_of, rows_of
from sts_export.triton.model.job import Job
from sts_export.triton.model.questions import Question, Row, question
from sts_export.triton.model.responses import RowResponses, batched
from sts_export.triton.pictures import read_image
from sts_export.triton.settings import ModelSettings

_MOST_BYTES = 64 << 20  # of all pictures of a row
_MOST_THREADS = 32  # whose pictures' hosts may be slow
_MOST_TEXT = 1000  # characters of an error that nobody foresaw
_LOOK = 0.1  # seconds between two looks for clients that have gone
_Told = tuple[Job, int, Question, RowResponses, Event]


class Watched(Protocol):
    """What is measured."""

    def watch(self, arrived: float, started: float) -> Callable[[Event], None]: ...

    def rejected(self) -> None: ...

    def update(self) -> None: ...


class Answering:
    """Takes requests until it is closed.

    Args:
        engine: stays the caller's but for its scheduler, which is closed here.
        settings: of the model.
        pb_utils: module of Triton's Python backend.
        metrics: told of requests.

    Raises:
        RequestError: a host or a folder of pictures is wrong.
    """

    def __init__(self, engine: Engine, settings: ModelSettings, pb_utils: Any, metrics: Watched) -> None:
        self._engine, self._settings, self._pb_utils, self._metrics = engine, settings, pb_utils, metrics
        self._rules = settings.picture_rules
        self._most = engine.scheduler.load.slots + settings.max_queue_size
        self._lock = threading.Lock()
        self._jobs: dict[Job, int] = {}  # under the lock: those that are not over, and their rows
        self._decoding = threading.Semaphore(os.cpu_count() or 1)  # decoding a picture takes memory
        self._events: SimpleQueue[_Told | tuple[Job, int, Problem] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._preparing = ThreadPoolExecutor(min(_MOST_THREADS, self._most), thread_name_prefix="sts-export prepare")
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._look)]
        for thread in self._threads:
            thread.start()

    @property
    def is_open(self) -> bool:
        """Whether requests are answered."""
        return self._engine.scheduler.is_open and not self._closed.is_set()

    def take(self, request: Any) -> None:
        """Answer a request, some time later and on another thread.

        Args:
            request: pb_utils.InferenceRequest.
        """
        arrived = time.perf_counter()
        rows = rows_of(request)
        job = Job(self._pb_utils, request.get_response_sender(), len(rows), request.requested_output_names(), arrived)
        if (problem := self._refusal(job)) is not None:
            self._refuse(job, problem)
            return
        try:
            parameters = parameters_of(request)
            questions = [_asked(job, number, row, parameters) for number, row in enumerate(rows)]
            for number, asked in enumerate(questions):
                self._preparing.submit(self._prepare, job, number, asked)
        except Exception as error:
            self._end(job, error.problem if isinstance(error, ProblemError) else _crash(error))

    def close(self) -> None:
        """Answer what was taken, and take no more."""
        self._closed.set()
        self._preparing.shutdown()
        self._engine.scheduler.close()
        self._events.put(None)
        for thread in self._threads:
            thread.join()
        self._metrics.update()

    def _refusal(self, job: Job) -> Problem | None:
        """Counts the job where it is none."""
        if self._closed.is_set():
            return DRAINING
        if not self._engine.scheduler.is_open:
            return BROKEN
        with self._lock:
            taken = sum(self._jobs.values())
            # A batch of more rows than there may ever be is answered where nobody else is.
            if taken and taken + len(job.parts) > self._most:
                return Problem(429, f"{taken} requests are here already; send it again later")
            self._jobs[job] = len(job.parts)
        return None

    def _prepare(self, job: Job, number: int, asked: Question) -> None:
        """On a thread of its own: whatever goes wrong, the request has an end."""
        try:
            self._submit(job, number, asked)
        except ProblemError as error:
            self._events.put((job, number, error.problem))
        except StsExportError as error:
            self._events.put((job, number, problem_of(error, asked.name_of)))
        except BaseException as error:  # a panic of an extension in Rust is no Exception
            self._events.put((job, number, _crash(error)))

    def _submit(self, job: Job, number: int, asked: Question) -> None:
        engine, rules = self._engine, self._rules

        def file(place: str) -> bytes:
            if job.given_up:
                raise ProblemError(GONE)
            picture = asked.pictures[int(place)]
            return picture_bytes(picture, rules) if isinstance(picture, str) else read_image(picture, rules.most_bytes)

        engine.scheduler.check_room()  # before pictures are decoded for nothing
        files = read_pictures(engine.pipeline, [str(place) for place in range(len(asked.pictures))], file, _MOST_BYTES)
        with self._decoding:
            if job.given_up:
                raise ProblemError(GONE)
            request = chat_request(engine.pipeline, asked.body, files, asked.prompt)
        responses = RowResponses(asked.returns, engine.pipeline.tokenizer.token_bytes, asked.before)
        watch, events = self._metrics.watch(job.arrived, request.started), self._events

        def deliver(event: Event) -> None:
            watch(event)
            if asked.stream or not isinstance(event, Piece):
                events.put((job, number, asked, responses, event))

        answer = engine.scheduler.submit(request, deliver)
        with self._lock:
            if not job.given_up:
                job.answers.append(answer)
                return
        engine.scheduler.cancel(answer)

    def _send(self) -> None:
        """Responses in the order of their events."""
        while (told := self._events.get()) is not None:
            job = told[0]
            if job.over:
                continue
            try:
                self._tell(told)
            except Exception as error:
                self._end(job, _crash(error))

    def _tell(self, told: _Told | tuple[Job, int, Problem]) -> None:
        """Send what an event brings."""
        if len(told) == 3:
            job, number, problem = told
            self._end(job, _placed(problem, job, number))
            return
        job, number, asked, responses, event = told
        if isinstance(event, Piece):
            job.respond(responses.piece(event), final=False)
        elif isinstance(event, Finished) and asked.stream:
            self._leave(job)
            job.respond(responses.last(event.result), final=True)
        elif isinstance(event, Finished):
            job.parts[number] = responses.whole(event.result)
            parts = [part for part in job.parts if part is not None]
            if len(parts) == len(job.parts):
                self._leave(job)
                job.respond(batched(parts), final=True)
        else:
            problem = problem_of(event.error, asked.name_of) if isinstance(event, Failed) else GONE
            self._end(job, _placed(problem, job, number))

    def _end(self, job: Job, problem: Problem) -> None:
        """With an error; nothing more can be done where Triton does not take it either."""
        self._leave(job)
        with suppress(Exception):
            self._refuse(job, problem)

    def _refuse(self, job: Job, problem: Problem) -> None:
        if problem.status == 429:
            self._metrics.rejected()
        job.refuse(problem)

    def _leave(self, job: Job) -> None:
        """Before the last response: who asks again at once finds the place free."""
        with self._lock:
            self._jobs.pop(job, None)
            job.end(self._engine.scheduler.cancel)

    def _look(self) -> None:
        """Requests whose clients have gone are given up, wherever they are."""
        while not self._closed.wait(_LOOK):
            with self._lock:
                jobs = [job for job in self._jobs if not job.given_up]
            for job in jobs:
                with suppress(Exception):  # the others must still be looked after
                    if job.is_cancelled:
                        self._give_up(job)
            with suppress(Exception):
                self._metrics.update()

    def _give_up(self, job: Job) -> None:
        with self._lock:
            job.given_up = True
            answers = list(job.answers)
        for answer in answers:
            self._engine.scheduler.cancel(answer)


def _crash(error: BaseException) -> Problem:
    what = f"the request could not be answered ({type(error).__name__}: {error})"
    return Problem(500, " ".join(what.split())[:_MOST_TEXT])


def _asked(job: Job, number: int, row: Row, parameters: Mapping[str, Any]) -> Question:
    """Raises ProblemError."""
    try:
        asked = question(row, parameters)
        if asked.stream and len(job.parts) > 1:
            raise RequestError(f"stream is for one row, and the request has {len(job.parts)}; send them one by one")
    except RequestError as error:
        raise ProblemError(_placed(problem_of(error), job, number)) from None
    except ProblemError as error:
        raise ProblemError(_placed(error.problem, job, number)) from None
    return asked


def _placed(problem: Problem, job: Job, number: int) -> Problem:
    """Of a batch: which row it is about."""
    if len(job.parts) == 1 or problem in (GONE, DRAINING, BROKEN):
        return problem
    return Problem(problem.status, f"row {number} of the batch: {problem.message}", problem.param, problem.code)
