"""One request of Triton on its way: its rows, and whom to tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from sts_export.generation.scheduling.answers import Answer
from sts_export.serving.problems import Problem
from sts_export.triton.model.responses import Outputs


class Job:
    """A request whose answers are under way.

    Args:
        pb_utils: module of Triton's Python backend.
        sender: pb_utils.InferenceResponseSender of the request.
        rows: number of rows of its batch.
        wanted: names of outputs; none: all.
        arrived: time.perf_counter() when it came.

    ``over``: the last response is or was sent.  ``given_up``: nobody waits for the rest.

    With its last response Triton forgets a request, and the server crashes where it is asked about it afterwards: so one lock
    is around both.
    """

    def __init__(
        self,
        pb_utils: Any,
        sender: Any,
        rows: int,
        wanted: Collection[str],
        arrived: float,
    ) -> None:
        self._pb_utils, self._sender, self._wanted = pb_utils, sender, frozenset(wanted)
        self.arrived = arrived
        self.answers: list[Answer] = []
        self.parts: list[Outputs | None] = [None] * rows
        self.over = self.given_up = False
        self._telling = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        """Whether its client has gone before the last response."""
        with self._telling:
            return not self.over and bool(self._sender.is_cancelled())

    def respond(self, outputs: Outputs, *, final: bool) -> None:
        """Send a response.

        Args:
            outputs: [rows, n].
        """
        tensors = [
            self._pb_utils.Tensor(name, array) for name, array in outputs.items() if not self._wanted or name in self._wanted
        ]
        self._send(self._pb_utils.InferenceResponse(output_tensors=tensors), final=final)

    def refuse(self, problem: Problem) -> None:
        """End with an error."""
        error = self._pb_utils.TritonError(problem.message, _code(self._pb_utils.TritonError, problem.status))
        self._send(self._pb_utils.InferenceResponse(output_tensors=[], error=error), final=True)

    def end(self, cancel: Callable[[Answer], None]) -> None:
        """Let go of everything; what still runs is given up."""
        self.given_up = True
        answers, self.answers = self.answers, []  # which hold the job: a circle would keep its pictures
        for answer in answers:
            cancel(answer)

    def _send(self, response: Any, *, final: bool) -> None:
        if not final:
            self._sender.send(response)
            return
        with self._telling:
            self.over = True
            self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _code(errors: Any, status: int) -> Any:
    """Triton's code for a status of HTTP."""
    if status in (408, 429, 503):
        return errors.UNAVAILABLE
    if status == 499:
        return errors.CANCELLED
    return errors.INVALID_ARG if status < 500 else errors.INTERNAL
