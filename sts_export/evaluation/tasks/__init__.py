"""One module a task; a new task is a new file here, with its object ``TASK``."""

from __future__ import annotations

from difflib import get_close_matches

from sts_export.discovery import members
from sts_export.errors import RequestError
from sts_export.evaluation.questions import Task


def tasks() -> dict[str, Task]:
    """By name."""
    return {task.name: task for task in members(__name__, "TASK").values()}


def find_task(name: str) -> Task:
    """Raises RequestError for a name that no task has."""
    known = tasks()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    raise RequestError(f"unknown task {name!r}: {hint}")
