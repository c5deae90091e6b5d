"""The settings of a stage: fields of its dataclass, written ``NAME:key=value,key=value`` and kept in the manifest.

A field is an int, a float, a bool, a str or a Literal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from sts_export.errors import BudgetError


class Configurable(Protocol):
    """A dataclass whose fields are settings, with a name that messages can give it."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


StageType = TypeVar("StageType", bound=Configurable)

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOOLS = {"true": True, "false": False}

_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def setting_types(stage: type[Configurable]) -> dict[str, Any]:
    """Type of each setting, in the order of the fields."""
    return {field.name: _hints(stage)[field.name] for field in fields(stage)}


def unsupported_settings(stage: type[Configurable]) -> list[str]:
    """Settings of a type that cannot be written on a command line and kept in a manifest."""
    return [name for name, kind in setting_types(stage).items() if kind not in _PLAIN and not choices_of(kind)]


def choices_of(kind: Any) -> tuple[Any, ...]:
    """The values that a setting of type ``kind`` may have; none where there are too many to say."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def check_settings(stage: Configurable) -> None:
    """Every field has its annotated type; a whole number will do for a float.

    Raises:
        BudgetError: one has not.
    """
    for name, kind in setting_types(type(stage)).items():
        value = getattr(stage, name)
        if allowed := choices_of(kind):
            if not any(value == each and type(value) is type(each) for each in allowed):
                raise BudgetError(f"unknown {name} {value!r}: choose one of {', '.join(map(str, allowed))}")
        elif kind is float and type(value) is int:
            object.__setattr__(stage, name, float(value))
        elif kind not in _PLAIN or type(value) is not kind:
            raise BudgetError(f"{name} must be {_PLAIN.get(kind, kind)}, not {value!r}")
        elif kind is float and not math.isfinite(value):
            raise BudgetError(f"{name} must be a finite number, not {value}")


def make_stage(stage: type[StageType], settings: Mapping[str, Any]) -> StageType:
    """The stage with these settings and its own defaults for the others.

    Raises:
        BudgetError: a setting that it does not have or cannot have, or lacks.
    """
    types = setting_types(stage)
    for name in settings:
        if name not in types:
            has = f"choose one of {', '.join(types)}" if types else "it has none"
            raise BudgetError(f"{stage.name} has no setting {name!r}: {has}")
    for field in fields(stage):
        if field.name not in settings and field.default is MISSING and field.default_factory is MISSING:
            raise BudgetError(f"{stage.name} needs a value of {field.name}: give {stage.name}:{field.name}=…")
    return stage(**settings)


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """``NAME:key=value,key=value`` -> the name and the values as they are written.

    Raises:
        BudgetError: it is written otherwise.
    """
    name, colon, rest = text.strip().partition(":")
    values: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise BudgetError(f"{text!r} is not NAME or NAME:key=value,key=value: write a stage and its settings like that")
        key = key.replace("-", "_")
        if key in values:
            raise BudgetError(f"{text!r} gives {key!r} twice: give it once")
        values[key] = value
    return name.strip(), values


def read_settings(stage: type[Configurable], values: Mapping[str, str]) -> dict[str, Any]:
    """Written values as values of the settings' types; unknown names stay, for :func:`make_stage` to refuse.

    Raises:
        BudgetError: a value is not of its setting's type.
    """
    types = setting_types(stage)
    return {name: _read(name, types.get(name, str), text) for name, text in values.items()}


def _read(name: str, kind: Any, text: str) -> Any:
    if allowed := choices_of(kind):
        return next((each for each in allowed if str(each) == text), text)
    try:
        return _BOOLS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise BudgetError(f"{name} must be {_PLAIN[kind]}, not {text!r}") from None


def settings_of(stage: Configurable) -> dict[str, Any]:
    """Name and value of every setting."""
    return asdict(stage)


def describe_stage(stage: Configurable) -> str:
    """``repulsion (anchor mean, epsilon 1e-06)``."""
    values = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings_of(stage).items())
    return f"{stage.name} ({values})" if values else stage.name
