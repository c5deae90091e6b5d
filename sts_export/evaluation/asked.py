"""The questions of a task, read and checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sts_export.errors import ImageError, RequestError
from sts_export.evaluation.questions import Question, Task, first
from sts_export.evaluation.tasks import find_task
from sts_export.paths import user_path
from sts_export.requests.request import check_count


@dataclass(frozen=True)
class Asked:
    """Questions of a task.

    Args:
        data: digest of the annotations.
    """

    task: Task
    questions: list[Question]
    data: str


def read_task(task: str | Task, data: str | Path | None = None, limit: int | None = None) -> Asked:
    """The questions of a task.

    Args:
        task: its name.
        data: folder with the files of the benchmark.
        limit: the first so many questions; None takes all, or as many as is usual for a task that has no end.

    Raises:
        RequestError: no such task; the folder, a file or an entry is not what it should be; no questions.
        ImageError: a picture is missing.
    """
    known = find_task(task) if isinstance(task, str) else task
    if limit is not None:
        check_count("limit", limit)
    if known.layout and data is None:
        raise RequestError(f"task {known.name} needs the benchmark's files (--data FOLDER): {known.layout}")
    if not known.layout and data is not None:
        raise RequestError(f"task {known.name} reads no files: leave --data out")
    folder = user_path(data) if data is not None else Path()
    digest = known.digest(folder)
    questions = first(known.questions(folder), known.usual_limit if limit is None else limit)
    if not questions:
        raise RequestError(f"{data} has no questions of task {known.name}; check that its files are whole")
    names: set[str] = set()
    for question in questions:
        if question.id in names:
            raise RequestError(f"{data} has question {question.id} of {known.name} twice; correct the file or get it again")
        names.add(question.id)
    check_pictures(questions)
    return Asked(known, questions, digest)


def check_pictures(questions: Sequence[Question]) -> None:
    """Raises ImageError for the first picture file that is not there."""
    checked: set[Path] = set()
    for question in questions:
        for image in question.images:
            if isinstance(image, Path) and image not in checked:
                if not image.is_file():
                    raise ImageError(f"picture {image} of question {question.id} is missing; get the pictures again")
                checked.add(image)
