"""Finds what the modules of a package offer, so that a new module needs no list to be edited."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def members(package: str, attribute: str) -> dict[str, Any]:
    """The object called ``attribute`` of every module right inside a package that has one.

    Args:
        package: its full name; all of its modules are imported.

    Returns:
        By the module's own name, in alphabetical order.
    """
    folder = importlib.import_module(package).__path__
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(folder)):
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, attribute):
            found[name] = getattr(module, attribute)
    return found
