"""SIGTERM and SIGHUP end a command as an interrupt does: what is half-written is removed first."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """Raised where the command is, like KeyboardInterrupt.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # as shells report it


@contextmanager
def terminable() -> Iterator[None]:
    """Both signals raise :class:`Terminated`.  One that is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    mine = [number for number, handler in before.items() if handler == signal.SIG_DFL]

    def terminate(number: int, _frame: FrameType | None) -> None:
        if not _is_ending():  # the clean-up is not to be disturbed
            raise Terminated(number)

    for number in mine:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def _is_ending() -> bool:
    """Whether :class:`Terminated` is on its way; a finalizer or a library may have swallowed it, and then it is not."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Terminated):
        error = error.__context__
    return error is not None
