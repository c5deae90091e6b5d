"""What the vision encoder made of the last pictures: several questions about one picture need it once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """Outputs of the encoder on the host, and the time they took."""

    outputs: Arrays
    milliseconds: float

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.outputs.values())


class FeatureCache:
    """Features by the content of the encoder's inputs; the least recently used go first.  Threads may share it.

    Args:
        most_bytes: of all features together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Features] = OrderedDict()
        self._found = self._missed = 0

    @property
    def lookups(self) -> tuple[int, int]:
        """How often features were found, and how often not."""
        with self._lock:
            return self._found, self._missed

    @staticmethod
    def key(inputs: Arrays) -> str:
        """Of encoder inputs: names, types, shapes and every byte."""
        digest = hashlib.sha256()
        for name in sorted(inputs):
            array = np.ascontiguousarray(inputs[name])
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def get(self, key: str) -> Features | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self._missed += 1
            else:
                self._found += 1
                self._entries.move_to_end(key)
            return found

    def put(self, key: str, features: Features) -> None:
        """Nothing happens to features that are larger than the whole cache."""
        if features.bytes > self._most:
            return
        with self._lock:
            self._entries[key] = features
            self._entries.move_to_end(key)
            while sum(entry.bytes for entry in self._entries.values()) > self._most:
                self._entries.popitem(last=False)
