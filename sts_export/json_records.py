"""Frozen dataclasses as JSON objects: every field is written, and what is read is checked against the annotations.

From a dataclass follow a msgspec type, which checks JSON and says which value is wrong, and with it a JSON Schema.

- A field is a plain type, a Literal, a tuple, a dict, a dataclass, or a union of those with None.
- Dataclasses that stand for each other in a union are told apart by a field ``kind: Literal["..."]``.
- A field of an open type, one whose kinds are registered elsewhere, says how it is written:
  ``field(metadata=Form(...).metadata)``.
- ``derived_fields`` of a class names properties that are written, too; they must come out the same when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache, reduce
from inspect import getdoc
from operator import or_
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from sts_export.errors import BundleError, StsExportError

Record = TypeVar("Record")
_FORM = "json form"
_TAG = "kind"


class RecordError(ValueError):
    """JSON that is not what it should be; the message begins with the path of the value."""


@dataclass(frozen=True)
class Form:
    """How values of an open type are written.

    Args:
        json: makes the type of what is written, when it is first needed; any that a field may have.
        read: a value of that type -> the field's value; may raise ValueError, TypeError, KeyError or StsExportError.
        write: inverse of ``read``.
    """

    json: Callable[[], Any]
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value

    @property
    def metadata(self) -> dict[str, Form]:
        """Of the dataclass field."""
        return {_FORM: self}


def encode(record: Any) -> dict[str, Any]:
    """A dataclass as dicts, lists and plain values, for JSON."""
    written = {item.name: _encoded(_written(item, getattr(record, item.name))) for item in fields(record)}
    return written | {name: getattr(record, name) for name in _derived(type(record))}


def decode(kind: type[Record], data: Any) -> Record:
    """Inverse of :func:`encode`.

    Raises:
        RecordError: a field is missing, unknown, of another type or out of its range.
        BundleError: what the record names is not installed.
    """
    return cast("Record", _checked(kind, data, "$"))


def json_schema(kind: type) -> dict[str, Any]:
    """JSON Schema (2020-12) of :func:`encode`'s results."""
    schema: dict[str, Any] = msgspec.json.schema(_json_type(kind, True))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": kind.__name__, **schema}


def _checked(hint: Any, data: Any, path: str) -> Any:
    try:
        checked = msgspec.convert(data, _json_type(hint, False), strict=True)
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.capacities.lower`" -> "$.capacities.lower: expected int, got str"
        message, _, below = str(error).replace("`", "").partition(" - at $")
        raise RecordError(f"{path}{below}: {message[0].lower()}{message[1:]}") from None
    return _built(hint, checked, path)


# Dataclass -> msgspec


@cache
def _json_type(hint: Hashable, whole: bool) -> Any:
    """What msgspec checks in the place of this annotation.

    Args:
        whole: the values of dicts, too; otherwise they are left for later, since msgspec does not tell keys in its messages.
    """
    if is_dataclass(hint):
        return _struct(cast("type", hint), whole)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return reduce(or_, (_json_type(item, whole) for item in inner))
    if origin is dict:
        return dict[str, _json_type(inner[1], whole) if whole else Any]  # type: ignore[misc]
    if origin is tuple:
        return tuple[tuple(item if item is ... else _json_type(item, whole) for item in inner)]  # type: ignore[misc]
    return hint


def _struct(kind: type, whole: bool) -> type[msgspec.Struct]:
    hints = _hints(kind)
    members = [
        (item.name, _json_type(hints[item.name] if (form := _form(item)) is None else form.json(), whole))
        for item in fields(kind)
        if not _is_tag(item, hints)
    ]
    members += [(name, _hints(getattr(kind, name).fget)["return"]) for name in _derived(kind)]
    tags = [get_args(hints[item.name])[0] for item in fields(kind) if _is_tag(item, hints)]
    tag: dict[str, Any] = {"tag": tags[0], "tag_field": _TAG} if tags else {}
    described = {"__doc__": (getdoc(kind) or "").split("\n\n")[0]}  # for the JSON Schema
    return msgspec.defstruct(kind.__name__, members, frozen=True, forbid_unknown_fields=True, namespace=described, **tag)


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _is_tag(item: Field[Any], hints: dict[str, Any]) -> bool:
    return item.name == _TAG and get_origin(hints[_TAG]) is Literal


def _form(item: Field[Any]) -> Form | None:
    return item.metadata.get(_FORM)


def _derived(kind: type) -> tuple[str, ...]:
    return getattr(kind, "derived_fields", ())


# Values


def _written(item: Field[Any], value: Any) -> Any:
    form = _form(item)
    return value if form is None else form.write(value)


def _encoded(value: Any) -> Any:
    if is_dataclass(value):
        return encode(value)
    if isinstance(value, dict):
        return {key: _encoded(element) for key, element in value.items()}
    return [_encoded(element) for element in value] if isinstance(value, tuple | list) else value


def _built(hint: Any, value: Any, path: str) -> Any:
    """The annotated value for what msgspec has checked."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        matching = [item for item in inner if is_dataclass(item) and _json_type(cast("type", item), False) is type(value)]
        return _built(matching[0], value, path) if matching else value
    if origin is dict:
        return {key: _checked(inner[1], element, f"{path}.{key}") for key, element in value.items()}
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(
            _built(kind, element, f"{path}[{place}]") for place, (kind, element) in enumerate(zip(kinds, value, strict=True))
        )
    return _made(cast("type", hint), value, path) if is_dataclass(hint) else value


def _made(kind: type, value: Any, path: str) -> Any:
    hints, given = _hints(kind), {}
    for item in fields(kind):
        if _is_tag(item, hints):
            continue
        form, at = _form(item), f"{path}.{item.name}"
        if form is None:
            given[item.name] = _built(hints[item.name], getattr(value, item.name), at)
        else:
            given[item.name] = _tried(form.read, _built(form.json(), getattr(value, item.name), at), at)
    made = _tried(lambda parts: kind(**parts), given, path)
    for name in _derived(kind):
        if getattr(made, name) != getattr(value, name):
            raise RecordError(f"{path}.{name}: {getattr(value, name)}, but the other fields make it {getattr(made, name)}")
    return made


def _tried(make: Callable[[Any], Any], value: Any, path: str) -> Any:
    try:
        return make(value)
    except BundleError:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError, StsExportError) as error:
        raise RecordError(f"{path}: {error}") from None
