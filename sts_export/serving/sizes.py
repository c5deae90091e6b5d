"""Bytes as operators write them, and slots that fit into so many."""

from __future__ import annotations

import re

from sts_export.bundle.manifest import Manifest
from sts_export.errors import RequestError
from sts_export.families.capacities import cache_bytes

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMG]?I?B?)", re.IGNORECASE | re.ASCII)
_MOST_SLOTS = 1024


def read_size(option: str, text: str) -> int:
    """``2GiB`` or ``500MB`` -> bytes.

    Raises:
        RequestError: it is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise RequestError(f"{option} is a size such as 512MiB or 2GiB, not {text[:40]!r}; correct it")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def slots_within(manifest: Manifest, memory: int) -> int:
    """How many requests' KV caches fit.

    Raises:
        RequestError: not one.
    """
    one = sum(cache_bytes(manifest.model, manifest.pruning, manifest.capacities, manifest.dtype))
    if memory < one:
        raise RequestError(
            f"the KV caches of one request take {one / 2**20:.0f} MiB, more than --memory; raise it, or export with smaller "
            "--max-prompt-tokens, --max-new-tokens or --max-visual-tokens"
        )
    return min(memory // one, _MOST_SLOTS)
