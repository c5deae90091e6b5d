"""What a variant means for a model: the export, and K and K' at a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from scripts.demo_results.variants import BUDGETS, STS, Table, Variant
from sts_export.adapters.opening import open_model
from sts_export.exporting.exporter import ExportRequest
from sts_export.exporting.plan import read_spec
from sts_export.hub import locate_model
from sts_export.pruning.budget import average_tokens, lowest_average, solve_budget
from sts_export.pruning.choosing import StageChoice, StagePair, choose_stages
from sts_export.pruning.per_request import Counts

PICTURES = 2  # that a question may be about
PROMPT_TOKENS, NEW_TOKENS = 64, 16


@dataclass(frozen=True)
class Model:
    """What is measured.

    Args:
        given: as ``--model`` of ``sts-export`` takes it.
        folder: of its checkpoint.
        tokens: N, of the largest picture.
        layers: T, of the decoder.
        gives: what its vision tower gives to stages.
    """

    given: str
    folder: Path
    tokens: int
    layers: int
    gives: frozenset[str]

    @property
    def name(self) -> str:
        """Without the folder it lies in."""
        return Path(self.given).name


@dataclass(frozen=True)
class Cell:
    """A variant at a budget.

    Args:
        budget: None: it drops nothing.
        keep: K and K' of a picture.
        tokens: of a picture in a decoder layer, on average.
        reached: whether that is the budget, or as near as counts allow.
    """

    variant: Variant
    budget: int | None
    keep: Counts
    tokens: float
    reached: bool = True


def read_model(given: str) -> Model:
    """Raises RequestError and its children for what is no checkpoint that can be exported."""
    checkpoint = open_model(locate_model(given))
    spec, _ = read_spec(checkpoint)
    return Model(given, checkpoint.folder, spec.max_image_tokens, spec.decoder.num_layers, spec.tower.gives)


def cells(table: Table, model: Model) -> list[Cell]:
    """All rows of a table, the unpruned ones first.

    Raises:
        BudgetError: a budget or choice that the model cannot have.
    """
    whole = [Cell(variant, None, (model.tokens, model.tokens), float(model.tokens)) for variant in table.unpruned]
    return whole + [cell(variant, budget, model) for variant in table.variants for budget in table.budgets]


def cell(variant: Variant, budget: int, model: Model) -> Cell:
    """Counts at a budget.

    Where stage 1 keeps all and the budget is too small for that, it is what is kept after the prune layer.

    Raises:
        BudgetError: a budget or choice that the model cannot have.
    """
    pair, layer = _pair(variant, model), _layer(variant, model)
    all_before = pair.stage1.keeps_all
    reached = budget >= lowest_average(model.tokens, model.layers, layer, all_before=all_before)
    if reached:
        ratio = pair.ratio if variant.ratio is None else variant.ratio
        keep = solve_budget(
            budget,
            num_visual_tokens=model.tokens,
            num_layers=model.layers,
            prune_layer=layer,
            ratio=ratio,
            all_before=all_before,
        )
    else:
        keep = model.tokens, cell(STS, budget, model).keep[1] if variant.inside_as_sts else budget
    return Cell(variant, budget, keep, float(average_tokens(model.layers, layer, *keep)), reached)


def request(variant: Variant, model: Model) -> ExportRequest:
    """The export that has room for every budget, and for questions about two pictures."""
    if _pair(variant, model).keeps_all:
        keep = model.tokens, model.tokens
    else:
        keeps = [cell(replace(variant, ratio=None), budget, model).keep for budget in BUDGETS]
        keep = max(first for first, _ in keeps), max(second for _, second in keeps)
    default = _pair(variant, model).method.layer(model.layers)
    layer = _layer(variant, model)
    return ExportRequest(
        model.given,
        keep=keep,
        method=variant.method,
        stage1=variant.stage1,
        stage2=variant.stage2,
        prune_layer=None if layer == default else layer,
        choices=dict(variant.choices),
        dtype=variant.dtype,
        quantize=variant.quantize,
        max_prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=NEW_TOKENS,
        max_visual_tokens=PICTURES * model.tokens,
    )


def _pair(variant: Variant, model: Model) -> StagePair:
    settings = {name: value for name, value in variant.choices if name != "positions"}
    return choose_stages(StageChoice(variant.method, variant.stage1, variant.stage2, settings), model.gives)


def _layer(variant: Variant, model: Model) -> int:
    """L; a share of the layers is rounded to the nearest, halves up."""
    if variant.eighths is None:
        return _pair(variant, model).method.layer(model.layers)
    return max(1, min((variant.eighths * model.layers + 4) // 8, model.layers - 1))
