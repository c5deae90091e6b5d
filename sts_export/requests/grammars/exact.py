"""Numbers of JSON schemas that llguidance would take for others: it reads them as float64, and bounds of integers as int64.

A bound may become stricter by that, which leaves every answer valid; a looser one, or another constant, does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, TypeGuard

from sts_export.errors import RequestError

_LEAST, _MOST = -(2**63), 2**63 - 1
_MINIMA, _MAXIMA = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})  # name -> schema
_DATA = frozenset({"const", "enum", "default", "examples"})  # no schemas


def check_numbers(schema: Any) -> None:
    """Raises RequestError for a number by which answers would not be valid."""
    for one in _schemas(schema):
        is_clamped = one.get("type") != "number"
        for name in (*_MINIMA, *_MAXIMA, "multipleOf"):
            value = one.get(name)
            if not _is_number(value):
                continue
            read = _read(value, is_clamped=is_clamped and name != "multipleOf")
            looser = read is None or (read < value if name in _MINIMA else read > value if name in _MAXIMA else read != value)
            if looser:
                raise _refused(name, value)
        for name in ("const", "enum"):
            for value in _values(one.get(name)):
                if isinstance(value, int) and not isinstance(value, bool) and not _is_written_so(value):
                    raise _refused(name, value)


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas within one, itself included."""
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left.extend(one)
        elif isinstance(one, dict):
            yield one
            for name, inner in one.items():
                if name in _NAMED and isinstance(inner, dict):
                    left.extend(inner.values())
                elif name not in _DATA:
                    left.append(inner)


def _values(data: Any) -> Iterator[Any]:
    left = [data]
    while left:
        one = left.pop()
        if isinstance(one, (list, dict)):
            left.extend(one.values() if isinstance(one, dict) else one)
        else:
            yield one


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read(value: float, *, is_clamped: bool) -> float | None:
    """What a bound becomes; None beyond every float."""
    try:
        read = float(value)
        whole: float = int(read) if read.is_integer() else read  # compared exactly
    except OverflowError:
        return None
    return min(max(whole, _LEAST), _MOST) if is_clamped else whole


def _is_written_so(value: int) -> bool:
    """Whether a constant stands in an answer: llguidance writes all digits of its float64, or the fewest that tell it."""
    try:
        read = float(value)
    except OverflowError:
        return False
    return int(read) == value == int(Decimal(repr(read)))


def _refused(name: str, value: float) -> RequestError:
    shown = str(value) if abs(value) < 10**40 else "a number of more than 40 digits"
    return RequestError(f"the JSON schema has {name} {shown}, which answers cannot keep to; use numbers up to 2^53")
