"""Where stages and methods are found: the files of stage1/ and stage2/, and other packages.

Another package brings stages and methods in the entry point group ``sts_export.stages``, each under its kind and name:

    [project.entry-points."sts_export.stages"]
    "stage1.every-nth" = "my_package.every_nth:EveryNth"
    "stage2.last-rows" = "my_package.last_rows:LastRows"
    "method.thin" = "my_package.methods:THIN"

The project's own come first.  What belongs to another name is not imported, so a broken package harms only what needs it.
"""

from __future__ import annotations

import pkgutil
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from sts_export.errors import BudgetError
from sts_export.pruning.methods import METHODS, Method
from sts_export.pruning.settings import unsupported_settings
from sts_export.pruning.stage import Stage, Stage1, Stage2

GROUP = "sts_export.stages"
Kind = Literal["stage1", "stage2"]
_TITLES = {"stage1": "stage 1", "stage2": "stage 2", "method": "method"}
_BASES: dict[str, type[Stage1] | type[Stage2]] = {"stage1": Stage1, "stage2": Stage2}


class UnknownNameError(BudgetError):
    """No installed package has a stage or method of this name."""


def find_stage1(name: str) -> type[Stage1]:
    """The stage before the LLM of that name.

    Raises:
        UnknownNameError: there is none.
        BudgetError: the package that brings it is broken.
    """
    return cast("type[Stage1]", _find_stage("stage1", name))


def find_stage2(name: str) -> type[Stage2]:
    """The stage inside the LLM of that name; raises as :func:`find_stage1`."""
    return cast("type[Stage2]", _find_stage("stage2", name))


def find_method(name: str) -> Method:
    """The method of that name; raises as :func:`find_stage1`."""
    own = next((method for method in METHODS if method.name == name), None)
    if own is not None:
        return own
    found = _load("method", name)
    if not isinstance(found.value, Method) or found.value.name != name:
        raise BudgetError(f"{found.label} is no sts_export.pruning.methods.Method of that name: mend that package")
    return found.value


def stage_names(kind: Kind) -> list[str]:
    """Every stage that is there, the project's own first."""
    own = own_stage_names(kind)
    return own + [name for name in _others(kind) if name not in own]


def method_names() -> list[str]:
    """Every method that is there, the project's own first."""
    own = [method.name for method in METHODS]
    return own + [name for name in _others("method") if name not in own]


def own_stage_names(kind: Kind) -> list[str]:
    """Stages of this package: the files of its folder."""
    folder = import_module(f"sts_export.pruning.{kind}")
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(folder.__path__))


def package_of(kind: Kind, name: str) -> str | None:
    """The distribution that brings a stage; None for the project's own."""
    if name in own_stage_names(kind):
        return None
    found = _entries(kind, name)
    return found[0].dist.name if found and found[0].dist is not None else None


def plugin_names() -> tuple[str, ...]:
    """Plugins that the project's own stages may use in TensorRT, which are those of its plugin library."""
    kinds: tuple[Kind, ...] = ("stage1", "stage2")
    stages = [_find_stage(kind, name) for kind in kinds for name in own_stage_names(kind)]
    return tuple(stage.plugin for stage in stages if stage.plugin is not None)


def _find_stage(kind: Kind, name: str) -> type[Stage]:
    if name in own_stage_names(kind):
        stage: type[Stage] = import_module(f"sts_export.pruning.{kind}.{name.replace('-', '_')}").STAGE
        return stage
    found = _load(kind, name)
    base = _BASES[kind]
    if not (isinstance(found.value, type) and issubclass(found.value, base) and is_dataclass(found.value)):
        raise BudgetError(
            f"{found.label} is no dataclass that extends sts_export.pruning.stage.{base.__name__}: mend that package"
        )
    if getattr(found.value, "name", None) != name:
        raise BudgetError(f"{found.label} has another name in itself: mend that package")
    if wrong := unsupported_settings(found.value):
        raise BudgetError(f"{found.label} has settings of types that cannot be written ({', '.join(wrong)}): mend that package")
    if not isinstance(getattr(found.value, "summary", None), str) or found.value.build is base.build:
        raise BudgetError(f"{found.label} lacks a summary or a method build: mend that package")
    return found.value


class _Loaded:
    """What an entry point names, and words for it."""

    def __init__(self, entry: EntryPoint, title: str) -> None:
        brought_by = f" of the package {entry.dist.name}" if entry.dist is not None else ""
        self.label = f"{title} {entry.name.partition('.')[2]!r}{brought_by}"
        try:
            self.value: Any = entry.load()
        except Exception as error:  # whatever another package does when it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise BudgetError(f"{self.label} cannot be loaded ({reason}): mend or uninstall that package") from None


def _load(kind: str, name: str) -> _Loaded:
    title, found = _TITLES[kind], _entries(kind, name)
    if not found:
        known = method_names() if kind == "method" else stage_names(cast("Kind", kind))
        raise UnknownNameError(f"unknown {title} {name!r}: choose one of {', '.join(known)}")
    packages = sorted({entry.dist.name for entry in found if entry.dist is not None})
    if len(found) > 1:
        raise BudgetError(f"{title} {name!r} is brought by several packages ({', '.join(packages)}): uninstall all but one")
    return _Loaded(found[0], title)


def _entries(kind: str, name: str) -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP, name=f"{kind}.{name}"), key=lambda entry: entry.value)


def _others(kind: str) -> list[str]:
    names = {entry.name for entry in entry_points(group=GROUP)}
    return sorted(name.partition(".")[2] for name in names if name.partition(".")[0] == kind and name.partition(".")[2])
