"""What arrays hold, as a short text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def content_key(arrays: Mapping[str, NDArray[Any]], *others: object) -> str:
    """Of arrays by name, in any order: names, types, shapes and every byte; and of other things, as they are printed."""
    digest = hashlib.sha256(repr(others).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        # The shape is that of the given one: ascontiguousarray makes one row of a number.
        digest.update(f"{name} {array.dtype} {arrays[name].shape};".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
