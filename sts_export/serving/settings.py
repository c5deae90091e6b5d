"""What an operator decides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sts_export.errors import RequestError
from sts_export.paths import user_path
from sts_export.requests.request import check_count
from sts_export.serving.hosts import ANY_HOST, HostRules

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Args:
        model: name that clients ask for.
        hosts: that requests may name.
        api_keys: one of which clients have to send; none: everybody is served.
        most_body: bytes of a body.
        most_silence: seconds between two pieces of a body, and until a client takes something of what was sent to it.
        longest_head: seconds until the head of a request is complete: from the connection on, or from the head's first byte.
        most_connections: that are open at a time; beyond, those that have been idle the longest are closed.
        most_admitted: requests that are read, prepared, queued or answered at a time; more are refused.
        log_prompts: whether the text of prompts is logged.
        examples: folder of PNG pictures that the page offers.

    Raises:
        RequestError: a number is wrong, or the folder is none.
    """

    model: str
    hosts: HostRules = ANY_HOST
    api_keys: tuple[str, ...] = ()
    most_body: int = 32 * MIB
    most_silence: float = 60.0
    longest_head: float = 20.0
    most_connections: int = 512
    most_admitted: int = 128
    log_prompts: bool = False
    examples: Path | None = None

    def __post_init__(self) -> None:
        check_count("most_body", self.most_body)
        check_count("most_admitted", self.most_admitted)
        check_count("most_connections", self.most_connections)
        for name in ("most_silence", "longest_head"):
            if not 0 < (seconds := getattr(self, name)) < math.inf:
                raise RequestError(f"{name} must be seconds above 0, not {seconds}")
        if self.examples is not None and not self.examples.is_dir():
            raise RequestError(f"{str(self.examples)!r} is no folder of examples for the page; give one that exists")


def read_api_keys(file: str | Path) -> tuple[str, ...]:
    """Keys of a file, one a line; empty lines and lines that begin with # are passed over.

    Raises:
        RequestError: it cannot be read, or has no key, or one that no header can carry.
    """
    path = user_path(file)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise RequestError(f"{file} cannot be read ({reason}); give a text file with one API key a line") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise RequestError(f"{file} has no API key; write one a line, or leave --api-key-file out")
    for number, key in enumerate(keys, start=1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise RequestError(f"API key {number} of {file} has characters that no header carries; use letters and digits")
    return keys
