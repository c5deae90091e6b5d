"""Evaluate bundles on a task.

vlm = Pipeline("demo-bundle", feature_cache=256 << 20)
rows = evaluate(vlm, "demo", budgets=["100%", 128, 64], limit=500)
for row, against in zip(rows, compare(rows)):
    print(row.budget, row.accuracy, against.relative)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sts_export.bundle.manifest import Manifest, open_bundle
from sts_export.errors import OutputError, RequestError
from sts_export.evaluation.amounts import OWN, Amount, label, reached
from sts_export.evaluation.asked import Asked, read_task
from sts_export.evaluation.asking import Run, ask, missing
from sts_export.evaluation.journal import Journal
from sts_export.evaluation.questions import Task
from sts_export.evaluation.results.comparing import find_row
from sts_export.evaluation.results.rows import Row, make_row
from sts_export.generation.pipeline import BATCH_SIZE, Pipeline
from sts_export.pruning.per_request import Budget, Counts
from sts_export.requests.request import check_count

Progress = Callable[[int, int], None]
_FEATURES = 256 << 20  # bytes of features that wait for the next question about their picture
_IDENTITY = 1


@dataclass(frozen=True)
class Settings:
    """How is asked; ``output`` None keeps answers in memory only."""

    batch_size: int = BATCH_SIZE
    max_new_tokens: int | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens)


def evaluate(
    pipeline: Pipeline,
    task: str | Task | Asked,
    *,
    budgets: Sequence[Budget | None] = (),
    keeps: Sequence[Counts] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Ask one bundle; a row a budget.

    Args:
        pipeline: one with a ``feature_cache`` encodes a picture once for all its questions and budgets.
        task: its name, or what :func:`read_task` has read.
        budgets, keeps: as for :meth:`Pipeline.generate`; None, or none of either, is the export's own.
        data, limit: as for :func:`read_task`.
        progress: is told of answers that are done, and how many there are to come in all.

    Raises:
        StsExportError: as :func:`read_task` and :meth:`Pipeline.generate`; OutputError for a journal.
    """
    asked = task if isinstance(task, Asked) else read_task(task, data, limit)
    amounts: list[Amount] = [*map(Amount, budgets), *(Amount(keep=keep) for keep in keeps)]
    name = str(pipeline.bundle.folder)
    how = settings or Settings()
    with _alone(how.output), _Rows(name, pipeline.manifest, asked, amounts or [OWN], how) as rows:
        rows.ask(pipeline, _counted(progress, rows.missing))
        return rows.made()


@dataclass(frozen=True)
class Evaluation:
    """What the command line asks for.

    Args:
        compare_with: row that ``compare`` is to be given later; that it is there is checked before anything runs.
        bundles, task, data, budgets, keeps, limit, settings, threads, backend, plugins: as for :class:`Pipeline`,
            :func:`evaluate` and :func:`read_task`.
    """

    bundles: Sequence[str]
    task: str
    data: str | None = None
    budgets: Sequence[str] = ()
    keeps: Sequence[Counts] = ()
    limit: int | None = None
    settings: Settings = Settings()
    compare_with: str | None = None
    threads: int | None = None
    backend: str | None = None
    plugins: str | None = None


def evaluate_bundles(
    request: Evaluation, progress: Progress | None = None, note: Callable[[str], None] | None = None
) -> list[Row]:
    """Ask bundle after bundle, each with the budgets that it reaches.

    Args:
        note: gets a line for what is left out, and for answers that are there already.

    Raises:
        StsExportError: as :func:`evaluate`; whatever can be refused is refused before anything runs.
    """
    say = note or (lambda line: None)
    manifests = [open_bundle(bundle).manifest for bundle in request.bundles]
    digests = [_digest_of(manifest) for manifest in manifests]
    for place, digest in enumerate(digests):
        if digest in digests[:place]:
            raise RequestError(f"{request.bundles[place]} is given twice, or is a copy of another bundle: give it once")
    amounts = [*map(Amount, request.budgets), *(Amount(keep=keep) for keep in request.keeps)]
    named = list(zip(request.bundles, [manifest.pruning for manifest in manifests], strict=True))
    taken, notes = reached(named, amounts)
    for line in notes:
        say(line)
    asked = read_task(request.task, request.data, request.limit)
    with ExitStack() as stack:
        stack.enter_context(_alone(request.settings.output))
        tables = [
            stack.enter_context(_Rows(bundle, manifest, asked, own, request.settings, request.backend))
            for bundle, manifest, own in zip(request.bundles, manifests, taken, strict=True)
        ]
        if request.compare_with is not None:
            find_row(request.compare_with, [(table.bundle, budget) for table in tables for budget in table.budgets])
        there, left = sum(table.there for table in tables), sum(table.missing for table in tables)
        if there:
            say(f"{there} of {there + left} answers are there already")
        counted = _counted(progress, left)
        for table in tables:
            if table.missing:
                with _opened(table.bundle, request) as pipeline:
                    table.ask(pipeline, counted)
        return [row for table in tables for row in table.made()]


def _opened(bundle: str, request: Evaluation) -> Pipeline:
    threads, backend, plugins = request.threads, request.backend, request.plugins
    return Pipeline(bundle, threads=threads, backend=backend, plugins=plugins, feature_cache=_FEATURES)


class _Rows:
    """The rows of one bundle while they are made."""

    def __init__(
        self,
        bundle: str,
        manifest: Manifest,
        asked: Asked,
        amounts: Sequence[Amount],
        settings: Settings,
        backend: str | None = None,
    ) -> None:
        self.bundle, self._asked, self._settings = bundle, asked, settings
        self._prunings = [amount.of(manifest.pruning) for amount in amounts]
        self.budgets = names = [label(pruning) for pruning in self._prunings]
        if len(set(names)) < len(names):
            raise RequestError(f"a budget is given twice for {bundle}: give each once")
        usual = min(asked.task.max_new_tokens, manifest.capacities.new_tokens)
        self._new_tokens = settings.max_new_tokens or usual
        common = {
            "version": _IDENTITY,
            "bundle": _digest_of(manifest),
            "task": asked.task.name,
            "data": asked.data,
            "max_new_tokens": self._new_tokens,
            "backend": backend or "default",
        }
        self._runs: list[Run] = []
        for amount, pruning, name in zip(amounts, self._prunings, names, strict=True):
            identity = {**common, "budget": name, "keep": [pruning.keep_stage1, pruning.keep_stage2]}
            file = None if settings.output is None else settings.output / _file_name(bundle, identity)
            self._runs.append((amount, Journal(file, identity)))

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        for _amount, journal in self._runs:
            journal.close()

    @property
    def missing(self) -> int:
        return missing(self._asked.questions, self._runs)

    @property
    def there(self) -> int:
        return len(self._asked.questions) * len(self._runs) - self.missing

    def ask(self, pipeline: Pipeline, done: Callable[[int], None]) -> None:
        ask(
            pipeline,
            self._asked.task,
            self._asked.questions,
            self._runs,
            batch_size=self._settings.batch_size,
            max_new_tokens=self._new_tokens,
            done=done,
        )

    def made(self) -> list[Row]:
        return [
            make_row(self.bundle, pruning, self._asked.task, self._asked.questions, journal.answers)
            for pruning, (_, journal) in zip(self._prunings, self._runs, strict=True)
        ]


def _digest_of(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest.to_json(), sort_keys=True).encode()).hexdigest()


def _file_name(bundle: str, identity: dict[str, Any]) -> str:
    """A file a row; another identity has another name."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    words = (identity["task"], Path(bundle).resolve().name, identity["budget"].replace("%", "pct"))
    return f"answers/{'-'.join(re.sub(r'[^A-Za-z0-9._]+', '-', word)[:60] for word in words)}-{digest}.jsonl"


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Adds up what is done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return more


@contextmanager
def _alone(output: Path | None) -> Iterator[None]:
    """Two evaluations must not write the same answers; without a folder nothing is written.

    Raises:
        OutputError: another one is at it, or the folder cannot be made.
    """
    if output is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(output / ".lock")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"another evaluation is writing to {output}; wait for it, or choose another --output") from None
    except OSError as error:
        raise OutputError(f"cannot write to {output} ({error.strerror}); choose another --output") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (output / ".lock").unlink()
        lock.release()
        with suppress(OSError):  # it holds answers
            output.rmdir()
