"""The reference of a stage, found by the stage's name.

Another package brings one in the entry point group ``sts_export.reference_stages``, as it brings the stage itself
(sts_export/pruning/registry.py): ``"stage1.every-nth" = "my_package.reference:every_nth"``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sts_export.errors import RequestError
from sts_export.reference.pruning.stage import Stage1Reference, Stage2Reference

GROUP = "sts_export.reference_stages"


def find_stage1(name: str) -> Stage1Reference:
    """Raises RequestError if no installed package has a reference of that stage, or a broken one."""
    found: Stage1Reference = _find("stage1", name)
    return found


def find_stage2(name: str) -> Stage2Reference:
    """Raises RequestError if no installed package has a reference of that stage, or a broken one."""
    found: Stage2Reference = _find("stage2", name)
    return found


def _find(kind: str, name: str) -> Any:
    folder = import_module(f"{__package__}.{kind}")
    for module in pkgutil.iter_modules(folder.__path__):
        if module.name.replace("_", "-") == name:
            return import_module(f"{folder.__name__}.{module.name}").STAGE
    title = f"stage {kind[-1]} {name!r}"
    found = sorted(entry_points(group=GROUP, name=f"{kind}.{name}"), key=lambda entry: entry.value)
    if not found:
        raise RequestError(
            f"{title} has no PyTorch reference to compare with: the package that brings it needs one in the entry point "
            f"group {GROUP}"
        )
    if len(found) > 1:
        raise RequestError(f"the reference of {title} is brought by several packages: uninstall all but one")
    try:
        return found[0].load()
    except Exception as error:  # whatever another package does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RequestError(f"the reference of {title} cannot be loaded ({reason}): mend the package that brings it") from None
