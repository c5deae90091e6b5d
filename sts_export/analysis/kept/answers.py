"""Ask every bundle at every budget, and make a panel of each answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from sts_export.analysis.kept.panels import Panel, map_view, name_views
from sts_export.bundle.manifest import Manifest, open_bundle
from sts_export.errors import BudgetError, RequestError
from sts_export.generation.pipeline import Pipeline
from sts_export.generation.result import GenerationResult, VisualTokens
from sts_export.media.images import load_image
from sts_export.paths import user_path
from sts_export.pruning.budget import parse_budget
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.per_request import Counts, for_request


@dataclass(frozen=True)
class Question:
    """What is asked of whom: a column for every bundle and budget.

    Args:
        bundles: folders written by ``sts-export``.
        images: picture files.
        budgets: ``"64"`` or ``"20%"``; none takes what each bundle was exported for.
        keep: K and K', instead of budgets.
        max_new_tokens, threads, backend, plugins: as for :class:`Pipeline` and its ``generate``.
    """

    bundles: Sequence[str]
    images: Sequence[str]
    prompt: str
    budgets: Sequence[str] = ()
    keep: Counts | None = None
    max_new_tokens: int | None = None
    threads: int | None = None
    backend: str | None = None
    plugins: str | None = None


def answer(question: Question) -> list[Panel]:
    """Panels, bundle by bundle, and of a bundle in the order of the budgets.

    Raises:
        RequestError: no bundle or picture; a bundle or a budget twice; what a bundle cannot do, such as a budget.
        ImageError: a picture cannot be read.
        BackendError: an engine failed.
    """
    check_columns(question.bundles, question.budgets)
    if not question.images:
        raise RequestError("nothing to show: give at least one picture (--image FILE)")
    # The last one, too, before the first runs.
    manifests = [_open(bundle, question) for bundle in question.bundles]
    pictures = [load_image(image) for image in question.images]
    panels = []
    for bundle, manifest in zip(question.bundles, manifests, strict=True):
        with Pipeline(bundle, threads=question.threads, backend=question.backend, plugins=question.plugins) as pipeline:
            for budget in question.budgets or (None,):
                result = _ask(pipeline, bundle, question, pictures, budget)
                panels.append(_panel(pipeline, _name(bundle), manifest, question, pictures, result))
    return panels


def check_columns(bundles: Sequence[str], budgets: Sequence[str]) -> None:
    """Every column differs from every other.

    Raises:
        RequestError: there is none, or a bundle or a budget is given twice.
        BudgetError: a budget is no number.
    """
    if not bundles:
        raise RequestError("nothing to show: give at least one bundle")
    folders = [os.path.realpath(user_path(bundle)) for bundle in bundles]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise RequestError(f"bundle {bundles[number]} is given twice, which draws the same twice: give it once")
    amounts = [(parse_budget(budget, 1), budget.strip().endswith("%")) for budget in budgets]
    for number, amount in enumerate(amounts):
        if amount in amounts[:number]:
            raise RequestError(f"budget {budgets[number].strip()} is given twice, which draws the same twice: give it once")


def _open(bundle: str, question: Question) -> Manifest:
    """Of a bundle that can have these budgets, as far as that does not depend on the pictures."""
    manifest = open_bundle(bundle).manifest
    with _named(bundle, question):
        for budget in question.budgets or (None,):
            for_request(manifest.pruning, budget, question.keep)
    return manifest


def _ask(
    pipeline: Pipeline, bundle: str, question: Question, pictures: Sequence[Image], budget: str | None
) -> GenerationResult:
    with _named(bundle, question):
        return pipeline.generate(
            question.prompt, pictures, max_new_tokens=question.max_new_tokens, budget=budget, keep=question.keep
        )


@contextmanager
def _named(bundle: str, question: Question) -> Iterator[None]:
    """Refusals of a budget say which of several bundles cannot have it."""
    try:
        yield
    except BudgetError as error:
        if len(question.bundles) == 1:
            raise
        raise BudgetError(f"{_name(bundle)}: {error}") from None


def _panel(
    pipeline: Pipeline,
    bundle: str,
    manifest: Manifest,
    question: Question,
    pictures: Sequence[Image],
    result: GenerationResult,
) -> Panel:
    drawn, first = [], 0
    for number, (file, picture) in enumerate(zip(question.images, pictures, strict=True)):
        views = pipeline.seen(picture)
        names = name_views(Path(file).name, len(views))
        survived = [token - first for token in result.kept_stage2]
        # The numbers of all pictures go on; a picture's views hold all of its tokens.
        merged = None if result.merged_into is None else result.merged_into[number]
        kept = result.kept_stage1[number]
        drawn.append(tuple(map_view(*pair, kept, survived, merged) for pair in zip(views, names, strict=True)))
        first += pipeline.prepared(picture).num_tokens
    pruning = manifest.pruning
    first_kept, second_kept = question.keep or (pruning.keep_stage1, pruning.keep_stage2)
    amount = f"budget {result.budget.strip()}" if result.budget else f"K = {first_kept}, K' = {second_kept}"
    details = (_stages(pruning, result.visual_tokens), f"{bundle} ({manifest.model.family})")
    title, text = f"{pruning.method}, {amount}", result.text.strip()
    return Panel(title, details, result.visual_tokens, result.cls_tokens, tuple(drawn), text)


def _stages(pruning: PruningConfig, counts: VisualTokens) -> str:
    """Which stage dropped tokens, and where."""
    before = pruning.stage1.name if counts.stage1 < counts.total else "none"
    inside = f"{pruning.stage2.name} after layer {pruning.prune_layer} of {pruning.num_layers}"
    return f"{before} before the LLM, {inside if counts.stage2 < counts.stage1 else 'none inside it'}"


def _name(bundle: str) -> str:
    return Path(os.path.realpath(user_path(bundle))).name
