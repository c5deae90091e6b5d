"""Buffers of finished requests, kept for the next ones: clearing and faulting in fresh ones costs time."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class CachePool:
    """KV buffers by the number of requests that they are for.  Threads may share it.

    ``give`` never waits: garbage collection may end an abandoned stream, and so give its buffers back, in the middle of any
    call, one of this pool in the same thread included.  What comes in while somebody works on the pool is taken over by them.

    Args:
        most: requests whose buffers may be idle, all sizes together; more only if the last ones given are larger.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._returned: deque[tuple[int, Any]] = deque()  # appended to without the lock
        self._idle: list[tuple[int, Any]] = []  # under the lock; idle for longest first
        self._closed = False

    def take(self, batch: int) -> Any:
        """Buffers for so many requests, which are the caller's alone; None if none are idle."""
        with self._lock:
            dropped = self._take_over()
            index = next((index for index, (size, _) in enumerate(self._idle) if size == batch), None)
            found = None if index is None else self._idle.pop(index)[1]
        del dropped  # not under the lock: freeing may take long, and lead back here
        self._settle()
        return found

    def give(self, batch: int, caches: Any) -> None:
        """Buffers for so many requests, which the caller uses no longer; the longest idle ones are dropped beyond ``most``."""
        self._returned.append((batch, caches))
        self._settle()

    def clear(self) -> bool:
        """Drop what is idle; whether there was any."""
        with self._lock:
            dropped = [*self._take_over(), *self._idle]
            self._idle = []
        self._settle()
        return bool(dropped)

    def close(self) -> None:
        """Drop what is idle, and from now on what is given."""
        self._closed = True
        self.clear()

    def __len__(self) -> int:
        return len(self._idle) + len(self._returned)

    def _settle(self) -> None:
        """Take over what was given, unless somebody is at it, who then does."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                dropped = self._take_over()
            finally:
                self._lock.release()
            del dropped

    def _take_over(self) -> list[tuple[int, Any]]:
        """Under the lock: make idle what was given; what has to go for it."""
        dropped = []
        while self._returned:
            entry = self._returned.popleft()
            self._idle.append(entry)
            most = 0 if self._closed else max(entry[0], self._most)
            while sum(size for size, _ in self._idle) > most:
                dropped.append(self._idle.pop(0))
        return dropped
