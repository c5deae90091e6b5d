"""Answers on disk, one line each, so that an evaluation that was killed goes on where it stopped.

The first line says of what the answers are.  A line that a kill or a full disk has cut off is dropped.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sts_export.errors import OutputError, RequestError

_IDENTITY = "evaluation"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        id: of the question.
        text: as the model said it.
        tokens: that were generated.
        average_visual_tokens: that a decoder layer saw.
        first_token_ms: what this request alone takes to its first token: the sum of its parts.
    """

    id: str
    text: str
    tokens: int
    average_visual_tokens: float
    first_token_ms: float


class Journal:
    """Answers of one row.

    Args:
        file: is made, with its folder, when the first answer comes; None keeps the answers in memory.
        identity: what the answers depend on.

    Raises:
        RequestError: the file holds answers of something else, or is damaged in the middle.
        OutputError: it cannot be read or written.
    """

    def __init__(self, file: Path | None, identity: Mapping[str, Any]) -> None:
        self.answers: dict[str, Answer] = {}
        self._file, self._identity = file, dict(identity)
        self._stream: BinaryIO | None = None
        self._whole, self._torn = 0, False  # bytes that whole lines take; whether others follow
        if file is not None:
            self._read(file)

    def add(self, answer: Answer) -> None:
        """Raises OutputError where the line cannot be written; the earlier ones stay."""
        if self._file is not None:
            try:
                self._write(self._file, asdict(answer))
            except OSError as error:
                raise _refused(self._file, error) from None
        self.answers[answer.id] = answer

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, file: Path, line: Mapping[str, Any]) -> None:
        if self._stream is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = file.open("r+b" if file.exists() else "xb", buffering=0)  # nothing is left to flush after a failure
            if self._torn:
                self._stream.truncate(self._whole)
            self._stream.seek(self._whole)
            if not self._whole:
                self._append({_IDENTITY: self._identity})
        self._append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._stream is not None
        rest = memoryview((json.dumps(line) + "\n").encode())
        while rest:
            rest = rest[self._stream.write(rest) :]

    def _read(self, file: Path) -> None:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(file, error) from None
        whole, _, _ = content.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        self._whole = len(whole) + 1 if whole else 0
        self._torn = len(content) > self._whole
        for number, line in enumerate(lines, start=1):
            place = f"{file}, line {number}"
            try:
                value = json.loads(line)
                if number == 1:
                    self._check(file, value[_IDENTITY])
                else:
                    answer = Answer(**value)
                    self.answers.setdefault(answer.id, answer)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise RequestError(f"{place}: no answer; delete the file, or choose another --output") from None

    def _check(self, file: Path, identity: Mapping[str, Any]) -> None:
        for name in {**identity, **self._identity}:
            if identity.get(name) != self._identity.get(name):
                raise RequestError(
                    f"{file} holds answers of another evaluation: its {name} is {_short(identity.get(name))}, not "
                    f"{_short(self._identity.get(name))}; choose another --output, or delete the file"
                )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:20] + "..."


def _refused(file: Path, error: OSError) -> OutputError:
    again = "the answers so far are kept: run the same command again"
    if error.errno in _FULL:
        return OutputError(f"the disk of {file.parent} is full; free some space; {again}")
    return OutputError(f"cannot use {file} ({error.strerror}); {again}, or with another --output")
