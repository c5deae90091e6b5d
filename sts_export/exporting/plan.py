"""What an export will be: the request, and dimensions, pruning and capacities that follow from it and the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from sts_export.checkpoints.checkpoint import Checkpoint, check_tokenizer, image_processor_kind, image_processor_settings
from sts_export.checkpoints.selector_weights import SelectorWeights, open_selector_weights
from sts_export.demo import MODEL_DIR, SELECTORS
from sts_export.errors import BudgetError, CheckpointError, RequestError
from sts_export.exporting.sizes import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    MIN_TEXT_TOKENS,
    MIN_VISUAL_TOKENS,
    fit_picture,
    fit_text,
)
from sts_export.families import family_of
from sts_export.families.capacities import Capacities
from sts_export.families.image_settings import read_image_settings
from sts_export.families.spec import ModelSpec
from sts_export.pruning.choosing import StageChoice, check_needs, choose_stages, config_for_budget, config_for_counts
from sts_export.pruning.config import PruningConfig


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Args:
        model: alias, hub id or checkpoint folder; a LoRA adapter in it is merged, its base found if it lies elsewhere.
        output: bundle folder; None names it after model and budget.
        budget: average visual tokens per layer, ``"64"`` or ``"20%"``; exclusive with ``keep``.
        keep: explicit (K, K').
        method: a pair of pruning stages by its name; None: the default one, or that of ``stage1`` and ``stage2``.
        stage1, stage2: pruning stages, ``NAME`` or ``NAME:key=value,key=value``, in place of the default method's.
        choices: ``positions``, as in PruningConfig, and settings of the stages by their names: anchor, epsilon, score_layer.
        dtype: float32, float16 or bfloat16, or fp32, fp16, bf16; None keeps the checkpoint's.
        quantize: ``int8`` or ``int4`` weights for ONNX Runtime's CPU provider, computed in float32; None leaves them alone.
        weights: ``copy`` into the bundle, or ``link`` to the checkpoint's files.
        selector_weights: .safetensors file of a trained selector, for a stage 1 that has weights of its own; None: for the
            demo model those that come with it.
        max_prompt_tokens, max_new_tokens: capacity for text (without visual tokens) and for generated tokens; None: what
            fits into the decoder's positions, at most 512 each.
        max_visual_tokens: capacity for visual tokens of a prompt before pruning, all images; None: one largest image.  In
            families that take any resolution, larger pictures are made smaller until they fit, and None also: one image
            of as many tokens as fit into the decoder's positions.

    What was chosen where a value is None is in the manifest's ``capacities``.
    """

    model: str
    output: str | Path | None = None
    budget: str | None = None
    keep: tuple[int, int] | None = None
    method: str | None = None
    stage1: str | None = None
    stage2: str | None = None
    prune_layer: int | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    quantize: str | None = None
    weights: Literal["copy", "link"] = "copy"
    selector_weights: str | Path | None = None
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_visual_tokens: int | None = None
    force: bool = False


@dataclass(frozen=True)
class ExportPlan:
    """What follows from a request and a checkpoint.

    Args:
        image_settings: of the image processor, as the bundle will have them.
        selector: weights of stage 1's own, if it has some.
        notes: lines to be said to whoever exports: what was chosen smaller than by default.
    """

    model: ModelSpec
    image_settings: dict[str, Any]
    pruning: PruningConfig
    capacities: Capacities
    notes: tuple[str, ...]
    selector: SelectorWeights | None = None


def plan_export(request: ExportRequest, checkpoint: Checkpoint) -> ExportPlan:
    """Everything that is decided before the first graph is built.

    Raises:
        CheckpointError: an architecture or processor that cannot be exported, or no tokenizer.
        BudgetError: as :func:`plan_pruning`.
        RequestError: capacities that are not positive, or do not fit into the decoder's positions; or weights of a selector
            that are needed and not given, or given and not needed.
    """
    for option, value in _counts(request).items():
        if value is not None and value < 1:
            raise RequestError(f"{option} {value} must be at least 1")
    own, settings = read_spec(checkpoint)
    spec, settings = limit_pictures(request, checkpoint, own, settings)
    pruning = _plan_pruning_of_limited(request, own, spec)
    capacities = plan_capacities(request, spec, pruning)
    selector = _selector_weights(request, checkpoint, spec, pruning)
    return ExportPlan(spec, settings, pruning, capacities, _notes(request, own, spec, capacities), selector)


def _selector_weights(
    request: ExportRequest, checkpoint: Checkpoint, spec: ModelSpec, pruning: PruningConfig
) -> SelectorWeights | None:
    stage, width = pruning.stage1, spec.tower.width
    file, needed = request.selector_weights, bool(stage.own_weights(width))
    if needed and file is None and checkpoint.given == MODEL_DIR.resolve():
        file = SELECTORS.get(stage.name)
    if needed and file is None:
        raise RequestError(f"stage 1 {stage.name} has weights of its own: give them with --selector-weights FILE.safetensors")
    if file is not None and not needed:
        raise RequestError(f"stage 1 {stage.name} has no weights of its own: leave out --selector-weights, or choose another")
    return None if file is None else open_selector_weights(file, stage.own_weights, width)


def read_spec(checkpoint: Checkpoint) -> tuple[ModelSpec, dict[str, Any]]:
    """The model's dimensions and its image processor's settings, as the checkpoint has them.

    Raises:
        CheckpointError: an architecture or processor that cannot be exported, or no tokenizer.
    """
    family = family_of(checkpoint.config)
    check_tokenizer(checkpoint)
    settings, source = image_processor_settings(checkpoint.processor_folder)
    kind = image_processor_kind(settings, source)
    if kind not in family.image_processors:
        usual = next(iter(family.image_processors))
        raise CheckpointError(
            f"{source} asks for {kind}, but {checkpoint.config['model_type']} models have {usual}; "
            "use the processor files of this model"
        )
    spec = family.parse(checkpoint.config, settings)
    processor = read_image_settings(settings, family.image_processors[kind])
    spec.tower.check_processor(processor, checkpoint.processor_folder)
    return spec, settings


def limit_pictures(
    request: ExportRequest, checkpoint: Checkpoint, spec: ModelSpec, settings: dict[str, Any]
) -> tuple[ModelSpec, dict[str, Any]]:
    """The same with pictures no larger than asked for, or than fits; families whose pictures have one size stay as they are.

    Raises:
        RequestError: too few positions are left for pictures.
    """
    family = family_of(checkpoint.config)
    if family.limit_tokens is None:
        return spec, settings
    most = request.max_visual_tokens
    if most is None:
        prompt, new, limit = request.max_prompt_tokens, request.max_new_tokens, spec.max_positions
        most = fit_picture(limit, spec.max_image_tokens, prompt, new)
        if most < min(MIN_VISUAL_TOKENS, spec.max_image_tokens):
            raise RequestError(
                f"{_at_least(prompt)} prompt + {_at_least(new)} new tokens leave {max(most, 0)} of {limit} positions to "
                f"pictures, which need {min(MIN_VISUAL_TOKENS, spec.max_image_tokens)}; lower --max-prompt-tokens or "
                "--max-new-tokens, or give --max-visual-tokens"
            )
    if most < spec.max_image_tokens:
        settings = family.limit_tokens(settings, most)
        spec = replace(family.parse(checkpoint.config, settings), max_image_tokens=most)
    return spec, settings


def plan_pruning(request: ExportRequest, spec: ModelSpec) -> PruningConfig:
    """The pruning configuration that the request means for this model.

    Raises:
        BudgetError: neither or both of budget and keep, unknown method or stage, impossible numbers or settings.
    """
    visual, layers = spec.max_image_tokens, spec.decoder.num_layers
    choices = {"positions": "keep" if spec.decoder.mrope_section else None, **request.choices}
    settings = {name: value for name, value in choices.items() if name != "positions"}
    gives = spec.tower.gives
    pair = choose_stages(StageChoice(request.method, request.stage1, request.stage2, settings), gives)
    check_needs(pair.stage1, gives, spec.family, request.method if request.stage1 is None else None)
    budget = "100%" if request.budget is None and request.keep is None and pair.keeps_all else request.budget
    if (budget is None) == (request.keep is None):
        raise BudgetError("give either a budget (--budget 64) or explicit counts (--keep 96,32)")
    if layers < 2:
        raise BudgetError(f"a decoder of {layers} layer cannot be split; pruning inside the LLM needs at least 2")
    asked: dict[str, Any] = {"method": request.method, "stage1": request.stage1, "stage2": request.stage2}
    asked |= {**choices, "gives": gives}
    if budget is not None:
        return config_for_budget(budget, num_visual_tokens=visual, num_layers=layers, prune_layer=request.prune_layer, **asked)
    keep1, keep2 = cast("tuple[int, int]", request.keep)
    return config_for_counts(visual, layers, request.prune_layer, keep1, keep2, **asked)


def _plan_pruning_of_limited(request: ExportRequest, own: ModelSpec, spec: ModelSpec) -> PruningConfig:
    """:func:`plan_pruning`, whose error says so where pictures were made smaller without being asked for."""
    try:
        return plan_pruning(request, spec)
    except BudgetError as error:
        if request.max_visual_tokens is not None or str(error) == _budget_error(request, own):
            raise
        size = f"{spec.max_image_tokens} of {own.max_image_tokens} visual tokens"
        raise BudgetError(
            f"{error}; pictures are limited to {size}, so that they fit in {spec.max_positions} positions"
        ) from None


def _budget_error(request: ExportRequest, spec: ModelSpec) -> str | None:
    try:
        plan_pruning(request, spec)
    except BudgetError as error:
        return str(error)
    return None


def plan_capacities(request: ExportRequest, spec: ModelSpec, pruning: PruningConfig) -> Capacities:
    """Cache rows of the decoder's parts.

    Raises:
        RequestError: beyond the decoder's position limit.
    """
    visual, limit = request.max_visual_tokens or 0, spec.max_positions
    pictures = Capacities.plan(spec, pruning, prompt_tokens=0, new_tokens=0, visual_tokens=visual)
    taken = max(*pictures.rows, pictures.positions)
    asked_text, asked_new = request.max_prompt_tokens, request.max_new_tokens
    text, new = fit_text(limit - taken, asked_text, asked_new)
    scarce = (asked_text is None and text < MIN_TEXT_TOKENS) or (asked_new is None and new < MIN_TEXT_TOKENS)
    if scarce or text + taken + new > limit:
        raise RequestError(
            f"{_at_least(asked_text)} prompt + {taken} visual + {_at_least(asked_new)} new tokens exceed {limit} positions; "
            "lower --max-prompt-tokens, --max-new-tokens, --max-visual-tokens or the budget"
        )
    return Capacities.plan(spec, pruning, prompt_tokens=text, new_tokens=new, visual_tokens=visual)


def _counts(request: ExportRequest) -> dict[str, int | None]:
    return {
        "--max-prompt-tokens": request.max_prompt_tokens,
        "--max-new-tokens": request.max_new_tokens,
        "--max-visual-tokens": request.max_visual_tokens,
    }


def _at_least(asked: int | None) -> str:
    return f"at least {MIN_TEXT_TOKENS}" if asked is None else str(asked)


def _notes(request: ExportRequest, own: ModelSpec, spec: ModelSpec, capacities: Capacities) -> tuple[str, ...]:
    """One line if anything is smaller than by default without being asked for."""
    prompt, new, visual = capacities.prompt_tokens, capacities.new_tokens, spec.max_image_tokens
    sizes = {
        "--max-visual-tokens": ("pictures", visual, own.max_image_tokens, f"{visual} of {own.max_image_tokens} visual tokens"),
        "--max-prompt-tokens": ("prompts", prompt, DEFAULT_PROMPT_TOKENS, f"{prompt} text tokens"),
        "--max-new-tokens": ("answers", new, DEFAULT_NEW_TOKENS, f"{new} tokens"),
    }
    asked = _counts(request)
    smaller = {
        option: (what, text) for option, (what, size, usual, text) in sizes.items() if asked[option] is None and size < usual
    }
    if not smaller:
        return ()
    (first, size), *others = smaller.values()
    limits = " and ".join([f"{first} are limited to {size}", *(f"{what} to {text}" for what, text in others)])
    positions = f"so that prompt, pictures and answer fit in {spec.max_positions} positions"
    return (f"note: {limits}, {positions}; set with {' and '.join(smaller)}",)
