"""What graphs made of the last pictures: one that is asked about again is not computed again."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from sts_export.generation.timing import PictureTimes, milliseconds_since

Arrays = Mapping[str, NDArray[Any]]
Key = tuple[str, str]  # a graph, and the content of all its inputs


@dataclass(frozen=True)
class Computed:
    """Outputs of a graph on the host, and the time that they took."""

    outputs: Arrays
    times: PictureTimes = field(default_factory=PictureTimes)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.outputs.values())


class PictureCache:
    """Outputs of graphs by the content of their inputs; the least recently used go first.

    Threads may share it.  Who wants what another thread computes at the time waits for it.

    Args:
        most_bytes: of all outputs together, of whichever graph.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Computed] = OrderedDict()
        self._pending: dict[Key, Future[Computed | None]] = {}
        self._found: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """Of all outputs that are there."""
        with self._lock:
            return self._bytes

    def lookups(self, graph: str) -> tuple[int, int]:
        """How often outputs of a graph were found, and how often they had to be computed."""
        with self._lock:
            return self._found[graph], self._missed[graph]

    def outputs(self, graph: str, key: str, compute: Callable[[], Computed]) -> Computed:
        """Outputs of a graph: those that are there, with the times that they save, or else what ``compute`` makes.

        They are read-only.  Whatever ``compute`` raises is raised; another thread that waited for it computes them itself.

        Args:
            key: :func:`sts_export.media.content.content_key` of everything that they follow from.
        """
        place, started = (graph, key), time.perf_counter()
        while True:
            found, pending = self._look_up(place)
            if found is None and pending is not None:
                found = pending.result()
            elif found is None:
                return self._computed(place, compute)
            if found is not None:
                with self._lock:
                    self._found[graph] += 1
                passed = PictureTimes(vision=milliseconds_since(started))
                return replace(found, times=passed + found.times.saved())

    def _look_up(self, place: Key) -> tuple[Computed | None, Future[Computed | None] | None]:
        """What is there, or who computes it; neither if the caller has to, which others then wait for."""
        with self._lock:
            found = self._entries.get(place)
            if found is not None:
                self._entries.move_to_end(place)
                return found, None
            pending = self._pending.get(place)
            if pending is None:
                self._pending[place] = Future()
                self._missed[place[0]] += 1
            return None, pending

    def _computed(self, place: Key, compute: Callable[[], Computed]) -> Computed:
        made: Computed | None = None
        try:
            made = _owned(compute())
        finally:
            with self._lock:
                waited_for = self._pending.pop(place)
                if made is not None:
                    self._keep(place, made)
            waited_for.set_result(made)
        return made

    def _keep(self, place: Key, made: Computed) -> None:
        """Nothing happens to what is larger than the whole cache."""
        if made.bytes > self._most:
            return
        self._entries[place] = made
        self._bytes += made.bytes
        while self._bytes > self._most:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.bytes


def _owned(made: Computed) -> Computed:
    """With arrays that nobody writes to, and that own what they show: a view keeps the whole array that it is of."""
    outputs = {name: array if array.flags.owndata else array.copy() for name, array in made.outputs.items()}
    for array in outputs.values():
        array.flags.writeable = False
    return replace(made, outputs=outputs)
