"""What lies in the slots of key-value caches: who wrote which rows where, so that a wrong address is seen at once.

A slot is the memory of one request in one cache.  Nothing tells where slots are but the calls themselves: the addresses that
are bound, and the shapes.  So two calls that disagree about them are a misuse, as is to go on from rows that nobody wrote, or
from a buffer that is not the one written last.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Slot:
    """name: graph and cache; rows: that hold something; latest: no other buffer holds newer ones."""

    name: str
    nbytes: int
    rows: int = 0
    latest: bool = True
    partner: int | None = None  # the buffer that it changes places with


class CacheSlots:
    """The slots of a device.

    Args:
        misuse: makes the error.

    Attributes:
        may_go_back: a slot may be continued before its end, as chats are that share a beginning.
    """

    def __init__(self, misuse: Callable[[str], Exception]) -> None:
        self._misuse = misuse
        self.may_go_back = False
        self._slots: dict[int, Slot] = {}
        self._addresses: list[int] = []  # sorted

    def call(
        self, name: str, before: int, after: int, nbytes: int, write_index: Sequence[int], rows: int, capacity: int
    ) -> None:
        """An engine reads a cache and writes it.

        Args:
            name: of graph and cache.
            before, after: addresses of the first slot as input and as output.
            nbytes: of one slot.
            write_index: of every slot of the call; ``rows`` rows are written from there on.
        """
        for index, first in enumerate(write_index):
            source = self._slot(name, before + index * nbytes, nbytes)
            target = self._slot(name, after + index * nbytes, nbytes)
            if first:
                self._check_read(source, index, first, capacity)
            if target is not source:
                source.latest = False
                source.partner, target.partner = after + index * nbytes, before + index * nbytes
            target.rows, target.latest = first + rows, True

    def _check_read(self, slot: Slot, index: int, first: int, capacity: int) -> None:
        if not slot.latest:
            raise self._misuse(f"slot {index} of {slot.name} is read where its rows are not the latest")
        full = slot.rows == capacity == first + 1  # the last row may be written again
        back = self.may_go_back and first < slot.rows
        if first != slot.rows and not full and not back:
            raise self._misuse(f"slot {index} of {slot.name} is continued at row {first}, and {slot.rows} rows were written")

    def copied(self, target: int, source: int, nbytes: int) -> None:
        """A copy on the device."""
        known, slot = self._slots.get(source), self._slots.get(target)
        if known is not None and known.nbytes == nbytes:
            slot = self._slot(known.name, target, nbytes)
            slot.rows, slot.latest = known.rows, known.latest
        elif slot is not None and slot.nbytes == nbytes:
            slot.rows, slot.latest = 0, True  # from where no engine wrote
        else:
            self.check_foreign(target, nbytes, "a copy")
            return
        if slot.partner is not None and slot.partner in self._slots:
            self._slots[slot.partner].latest = False

    def check_foreign(self, address: int, nbytes: int, what: str) -> None:
        """What is no cache is written there."""
        if (other := self._overlapping(address, nbytes)) is not None:
            raise self._misuse(f"{what} is written into a slot of {self._slots[other].name}")

    def forget(self, address: int, nbytes: int) -> None:
        """The memory was freed."""
        for one in [one for one in self._addresses if address <= one < address + nbytes]:
            self._addresses.remove(one)
            del self._slots[one]

    def _slot(self, name: str, address: int, nbytes: int) -> Slot:
        found = self._slots.get(address)
        if found is not None and (found.name, found.nbytes) == (name, nbytes):
            return found
        if (other := self._overlapping(address, nbytes)) is not None:
            apart = f"{abs(address - other)} bytes apart"
            raise self._misuse(f"a slot of {name} overlaps one of {self._slots[other].name}, {apart}")
        insort(self._addresses, address)
        self._slots[address] = Slot(name, nbytes)
        return self._slots[address]

    def _overlapping(self, address: int, nbytes: int) -> int | None:
        index = bisect_left(self._addresses, address + nbytes) - 1
        if index < 0:
            return None
        last = self._addresses[index]
        return last if last + self._slots[last].nbytes > address else None
