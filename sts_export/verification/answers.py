"""Compare a bundle with the PyTorch reference on the checkpoint it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sts_export.errors import RequestError
from sts_export.generation.pipeline import Pipeline
from sts_export.graphs.needs import PROJECTED
from sts_export.media.images import load_image
from sts_export.media.synthetic import synthetic_image
from sts_export.pruning.per_request import Budget, Counts
from sts_export.source_reference import open_reference, selector_file
from sts_export.verification.own_features import leaves_more_than_a_set, select_on_own_features

if TYPE_CHECKING:
    from torch import Tensor

    from sts_export.bundle.manifest import Manifest
    from sts_export.generation.result import GenerationResult
    from sts_export.pruning.config import PruningConfig
    from sts_export.reference import ReferenceModel, ReferenceResult
    from sts_export.reference.pruning.crops import Selection
    from sts_export.requests.messages import Messages

# Largest difference of logits over their largest magnitude, with the same tokens and kept sets on both sides.  Quantized
# bundles are compared with unquantized weights: theirs are limits of a trained model's loss; random weights lose more.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1, "int8": 0.25, "int4": 0.5}
# Two candidates closer than this (relative) are a tie that rounding may decide either way.
NEAR_TIE = 1e-5
PROMPTS = ("What is in the picture?", "Describe the colors.", "How many objects are there?", "Where is the largest object?")


# Stage 2 in narrower types: how far the best dropped score may lie above the worst kept one, relative to it.
REGRET = {"float32": 0.0, "float16": 0.05, "bfloat16": 0.2, "int8": 0.5, "int4": 1.0}
# Pivots are chosen by sums over a row's numbers, which rounding moves less: this share of it.
MARGIN_OF_REGRET = 0.1
# Cosines of projected rows, of each other or to text, even less.
TIE_OF_REGRET = 0.01


@dataclass(frozen=True)
class PairReport:
    """One image/prompt pair: what agrees with the reference.

    stage1_equal, stage2_equal: kept indices; in types narrower than float32 stage 1 is compared on the bundle's own
    features and stage 2 may differ among scores within REGRET, since rounding decides between close candidates.
    near_tie: the reference itself was undecided in the stage 1 that is compared.
    logits_error: largest relative difference over all steps.
    same_choice: share of the steps at which both choose the same token, given the same text before it and under the
    checkpoint's generation settings.
    """

    prompt: str
    stage1_equal: bool
    stage2_equal: bool
    near_tie: bool
    tokens_equal: bool
    logits_error: float
    same_choice: float


@dataclass(frozen=True)
class VerifyReport:
    """All pairs and the verdict.  Tokens must be equal in float32 only.

    ``precision`` is the bundle's dtype, or its quantization; ``backend`` what ran it, ``operators`` the library whose kernels
    chose the tokens (:class:`sts_export.generation.result.GenerationResult`).
    """

    precision: str
    tolerance: float
    pairs: tuple[PairReport, ...]
    backend: str = ""
    operators: str | None = None

    @property
    def same_choice(self) -> float:
        """Share of all steps at which the bundle prefers the reference's token: 1 minus this is the accuracy change."""
        return float(np.mean([pair.same_choice for pair in self.pairs]))

    @property
    def passed(self) -> bool:
        return all(self._agrees(pair) for pair in self.pairs)

    def _agrees(self, pair: PairReport) -> bool:
        if not pair.logits_error <= self.tolerance:
            return False
        if not pair.stage1_equal:  # everything after another stage 1 is different too
            return pair.near_tie
        return pair.stage2_equal and (pair.tokens_equal or self.precision != "float32")

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "same_choice": self.same_choice, **asdict(self)}


def verify(
    bundle: str | Path,
    checkpoint: str | None = None,
    *,
    images: Sequence[str] = (),
    prompts: Sequence[str] = (),
    pairs: int = 4,
    max_new_tokens: int = 16,
    backend: str | None = None,
    plugins: str | None = None,
    selector_weights: str | None = None,
    budget: Budget | None = None,
    keep: Counts | None = None,
) -> VerifyReport:
    """Run bundle and reference on the same pairs.

    Args:
        backend: that runs the bundle; None takes the one that a pipeline chooses.
        plugins: as for :class:`sts_export.Pipeline`.
        selector_weights: of a trained selector; None takes the file that the manifest names.
        budget, keep: of every request, on both sides; as for :meth:`sts_export.Pipeline.stream`.

    Raises:
        BudgetError: the bundle cannot have this budget.
        CheckpointError: the source checkpoint is gone (give it with --checkpoint) or another one; so a selector's weights.
        RequestError: no pairs asked for, or PyTorch is not installed.
    """
    if pairs < 1:
        raise RequestError(f"--pairs must be at least 1, not {pairs}")
    if max_new_tokens < 1:
        raise RequestError(f"--max-new-tokens must be at least 1, not {max_new_tokens}")
    pipeline = Pipeline(bundle, backend=backend, plugins=plugins)
    selector = selector_file(pipeline.bundle, selector_weights)
    pipeline.pruning(budget, keep)  # refused before any work
    model = _open_reference(pipeline, checkpoint)
    pictures = [load_image(image) for image in images] or [synthetic_image(seed) for seed in range(pairs)]
    texts = list(prompts) or list(PROMPTS)
    count = max(len(images), len(prompts), pairs if not images and not prompts else 1)
    asked: dict[str, Any] = {"budget": budget, "keep": keep, "weights": _selector_weights(selector)}
    reports = tuple(
        compare(pipeline, model, texts[index % len(texts)], [pictures[index % len(pictures)]], max_new_tokens, **asked)
        for index in range(count)
    )
    precision = precision_of(pipeline.manifest)
    return VerifyReport(precision, TOLERANCE[precision], reports, pipeline.backend_name, pipeline.operators)


def precision_of(manifest: Manifest) -> str:
    """What rounding the bundle's numbers went through."""
    return manifest.quantization or manifest.dtype


def compare(
    pipeline: Pipeline,
    model: ReferenceModel,
    prompt: str | Messages,
    images: Sequence[Image.Image],
    max_new_tokens: int,
    *,
    budget: Budget | None = None,
    keep: Counts | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> PairReport:
    """One prompt with its images.  Logits are compared under the bundle's own kept sets and tokens, so that one flipped
    near-tie does not make every later number meaningless."""
    from sts_export.reference import generate

    config, precision = pipeline.pruning(budget, keep), precision_of(pipeline.manifest)
    weights = weights or {}
    ours = pipeline.generate(prompt, images, max_new_tokens=max_new_tokens, ignore_eos=True, budget=budget, keep=keep)
    free = generate(model, prompt, images, config, max_new_tokens, ignore_eos=True, selector=weights)
    tokens_equal = ours.token_ids == free.token_ids
    shown = prompt if isinstance(prompt, str) else f"chat of {len(prompt)} messages"
    if not _sets_possible(config, free.num_visual_tokens, ours):
        return PairReport(shown, False, False, False, tokens_equal, float("inf"), 0.0)
    # The reference's stage 2 on our stage 1, then its logits on both of our sets.
    own = select_on_own_features(pipeline, model, config, prompt, images, weights)
    compared = free.trace if precision == "float32" else own
    near_tie = bool((compared.margins < _near_tie(config, pipeline.manifest.dtype)).any())
    stage1: dict[str, Any] = {"kept_stage1": ours.kept_stage1}
    if leaves_more_than_a_set(config):
        stage1 = {"selections": own.selections}
    after_stage1 = generate(model, prompt, images, config, 1, **stage1)
    theirs = generate(
        model,
        prompt,
        images,
        config,
        max_new_tokens,
        ignore_eos=True,
        kept_stage2=ours.kept_stage2 if ours.kept_stage2 else None,
        forced_tokens=ours.token_ids,
        **stage1,
    )
    stage1_equal = _same_stage1(ours, compared.selections)
    if precision == "float32":
        stage2_equal = ours.kept_stage2 == after_stage1.kept_stage2
    else:
        stage2_equal = _near_best(ours, after_stage1, REGRET[precision])
    expected = theirs.logits.numpy()
    actual = pipeline.score(prompt, images, ours.token_ids, budget=budget, keep=keep)
    error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
    same = float(np.mean(np.equal(ours.token_ids, theirs.choices)))
    return PairReport(shown, stage1_equal, stage2_equal, near_tie, tokens_equal, float(error.max()), same)


def _near_tie(config: PruningConfig, dtype: str) -> float:
    """What candidates of stage 1 are closer than in a tie; a narrow type, in which rows are projected, rounds once more."""
    return max(NEAR_TIE, REGRET[dtype] * TIE_OF_REGRET) if PROJECTED in config.stage1_needs else NEAR_TIE


def _same_stage1(ours: GenerationResult, selections: Sequence[Selection]) -> bool:
    """Kept tokens, CLS tokens, and what each dropped token was merged into."""
    merged: Sequence[list[int] | None] = ours.merged_into or [None] * len(selections)
    return (
        ours.kept_stage1 == [selection.kept for selection in selections]
        and ours.cls_tokens == sum(selection.cls_tokens for selection in selections)
        and all(_joined(one) == _joined(selection.joined) for one, selection in zip(merged, selections, strict=True))
    )


def _joined(targets: list[int] | None) -> dict[int, int]:
    """Token -> the one that it was merged into."""
    return {token: target for token, target in enumerate(targets or []) if target >= 0}


def _sets_possible(config: PruningConfig, num_visual_tokens: Sequence[int], ours: GenerationResult) -> bool:
    """Each kept set is ascending, of the right size, and taken from what was there; CLS tokens make up for what lacks."""
    keeps = [config.keeps(count) for count in num_visual_tokens]
    keep1, keep2 = (sum(of_images) for of_images in zip(*keeps, strict=True))
    numbers = _in_all(ours.kept_stage1, num_visual_tokens)
    return (
        len(ours.kept_stage1) == len(keeps)
        and len(numbers) + ours.cls_tokens == keep1
        and all(
            _possible(kept, range(count), most)
            for kept, count, (most, _) in zip(ours.kept_stage1, num_visual_tokens, keeps, strict=True)
        )
        and _possible(ours.kept_stage2, numbers, keep2)
        and len(ours.kept_stage2) >= min(keep2 - ours.cls_tokens, len(numbers))
    )


def _in_all(kept_stage1: Sequence[Sequence[int]], num_visual_tokens: Sequence[int]) -> list[int]:
    """Kept tokens of each image, numbered through all images."""
    firsts = np.cumsum([0, *num_visual_tokens])
    return [int(first) + token for first, kept in zip(firsts, kept_stage1, strict=False) for token in kept]


def _possible(kept: list[int], candidates: Sequence[int], most: int) -> bool:
    """Ascending, without repeats, not too many, and taken from the candidates."""
    return kept == sorted(set(kept)) and len(kept) <= most and set(kept) <= set(candidates)


def _selector_weights(file: Path | None) -> Mapping[str, Tensor]:
    """Those of a trained selector; none where there is none."""
    from sts_export.reference.selector import load_selector

    return {} if file is None else load_selector(file)


def _near_best(ours: GenerationResult, reference: ReferenceResult, regret: float) -> bool:
    """Whether no dropped token scored better than the worst kept one by more than ``regret``, relative to it.

    Where the reference's stage has no scores the sets are equal.  Where a pivot of the scores was chosen by a margin that
    rounding covers, any set may be right.
    """
    if reference.trace.stage2_margin < regret * MARGIN_OF_REGRET:
        return True
    scores = reference.trace.scores
    if scores is None:
        return ours.kept_stage2 == reference.kept_stage2
    chosen = set(ours.kept_stage2)
    scored = [(token, float(score)) for token, score in zip(reference.trace.tokens, scores, strict=True) if token >= 0]
    kept = [score for token, score in scored if token in chosen]
    dropped = [score for token, score in scored if token not in chosen]
    return not dropped or max(dropped) <= min(kept) * (1 + regret)


def format_report(report: VerifyReport) -> str:
    """A table for people."""
    mark = {True: "equal", False: "DIFFERENT"}
    lines = [f"{'stage 1':<11}{'stage 2':<11}{'tokens':<11}{'logits error':<14}{'same choice':<13}prompt"]
    for pair in report.pairs:
        tie = " (near-tie)" if pair.near_tie and not pair.stage1_equal else ""
        cells = (mark[pair.stage1_equal] + tie, mark[pair.stage2_equal], mark[pair.tokens_equal])
        lines.append(
            "".join(f"{cell:<11}" for cell in cells) + f"{pair.logits_error:<14.2e}{pair.same_choice:<13.0%}{pair.prompt}"
        )
    verdict = "passed" if report.passed else "FAILED"
    lines.append(
        f"{verdict}: {len(report.pairs)} pairs in {report.precision}, tolerance {report.tolerance:g}, on {report.backend}; "
        f"same choice as the reference at {report.same_choice:.1%} of the steps"
    )
    return "\n".join(lines)


def _open_reference(pipeline: Pipeline, checkpoint: str | None) -> ReferenceModel:
    try:
        from sts_export.reference import find_stage1, find_stage2
    except ImportError:
        raise RequestError("verify needs PyTorch: pip install 'sts-export[reference]'") from None
    find_stage1(pipeline.manifest.pruning.stage1.name)  # before any work
    find_stage2(pipeline.manifest.pruning.stage2.name)
    return open_reference(pipeline.bundle, checkpoint)
