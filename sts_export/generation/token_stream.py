"""An answer as it comes."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import cast

from sts_export.errors import RequestError
from sts_export.generation.result import GenerationResult


class TokenStream:
    """Iterates over pieces of text as they are generated; ``result`` is there once it is exhausted.

    Threads that read one stream get every piece once, each in one of them.
    """

    def __init__(self, pieces: Generator[str, None, GenerationResult]) -> None:
        self._pieces = pieces
        self._result: GenerationResult | None = None
        self._lock = threading.RLock()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> str:
        with self._lock:
            try:
                return next(self._pieces)
            except StopIteration as end:
                if end.value is not None:
                    self._result = end.value
                raise StopIteration from None

    def close(self) -> None:
        """Stop generating, after the piece that another thread may be waiting for; the request's buffers are given back."""
        with self._lock:
            self._pieces.close()

    @property
    def result(self) -> GenerationResult:
        if self._result is None:
            raise RequestError("the stream has no result yet; read it to its end first")
        return self._result


def drained(pieces: Generator[tuple[int, str], None, list[GenerationResult]]) -> list[GenerationResult]:
    """The results of a batch."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return cast("list[GenerationResult]", end.value)


def only(pieces: Generator[tuple[int, str], None, list[GenerationResult]]) -> Generator[str, None, GenerationResult]:
    """The pieces and the result of a batch of one."""
    try:
        while True:
            try:
                _, piece = next(pieces)
            except StopIteration as end:
                return cast("list[GenerationResult]", end.value)[0]
            yield piece
    finally:
        pieces.close()
