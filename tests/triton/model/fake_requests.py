"""Requests and responses of Triton's Python backend, which ends like the real one where it is used wrongly."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.triton.tensors import DTYPES, INPUTS

PATIENCE = 60.0
FINAL = 1
_KINDS = {tensor.name: tensor.kind for tensor in INPUTS}


@dataclass(frozen=True)
class Tensor:
    label: str
    array: NDArray[Any]

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass(frozen=True)
class Error:
    message: str
    code: str


class TritonError:
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = "INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"

    def __new__(cls, message: str, code: str) -> Any:
        return Error(message, code)


@dataclass(frozen=True)
class Response:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: Error | None = None


class Sender:
    """Whose request is forgotten with the final response: what comes then would end the server."""

    def __init__(self) -> None:
        self.responses: queue.SimpleQueue[tuple[Response, bool]] = queue.SimpleQueue()
        self.misuse: list[str] = []
        self.cancelled = threading.Event()
        self._forgotten = False

    def send(self, response: Response, flags: int = 0) -> None:
        if self._forgotten:
            self.misuse.append("a response after the final one")
        self._forgotten = flags == FINAL
        self.responses.put((response, self._forgotten))

    def is_cancelled(self) -> bool:
        if self._forgotten:
            self.misuse.append("is_cancelled after the final response")
        return self.cancelled.is_set()

    def next(self) -> tuple[Response, bool]:
        return self.responses.get(timeout=PATIENCE)

    def end(self) -> Response:
        """The final response."""
        while not (found := self.next())[1]:
            pass
        assert not self.misuse
        return found[0]


@dataclass(frozen=True)
class Request:
    """Inputs are lists of rows."""

    values: Mapping[str, list[list[Any]]]
    sender: Sender = field(default_factory=Sender)
    text: str = "{}"

    @classmethod
    def of(cls, rows: int = 1, **values: Any) -> Request:
        """One row: values; more: a list of values each."""
        return cls({name: [[value]] if rows == 1 else [[one] for one in value] for name, value in values.items()})

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, np.array(rows, DTYPES[_KINDS[name]])) for name, rows in self.values.items()]

    def parameters(self) -> str:
        return json.dumps(json.loads(self.text))

    def requested_output_names(self) -> list[str]:
        return []

    def get_response_sender(self) -> Sender:
        return self.sender


PB_UTILS = SimpleNamespace(
    Tensor=Tensor, InferenceResponse=Response, TritonError=TritonError, TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL
)
