"""SIGTERM and SIGHUP end a command as an interrupt does: what is half-written is removed first."""

from __future__ import annotations

import signal
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
        for each in mine:  # the clean-up is not to be disturbed
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    for number in mine:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
