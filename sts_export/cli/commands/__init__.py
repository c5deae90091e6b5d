"""One module a command; a new command is a new file here.

    SUMMARY             its line in the help
    PLACE               where in the help that line stands
    make_parser()       the parser of its arguments
    action(arguments)   does it; may return an exit code

Modules import what is heavy inside their functions: the help imports all of them.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from sts_export.discovery import members

_LAST = 100  # the place of a command that names none


def exists(command: str) -> bool:
    """Imports nothing."""
    return any(module.name == command for module in pkgutil.iter_modules(__path__))


def load(command: str) -> Any:
    """The module of a command."""
    return import_module(f"{__name__}.{command}")


def summaries() -> dict[str, str]:
    """Command -> its line, in the order of the help."""
    lines, places = members(__name__, "SUMMARY"), members(__name__, "PLACE")
    return {name: lines[name] for name in sorted(lines, key=lambda name: places.get(name, _LAST))}
