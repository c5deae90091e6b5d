"""What is measured: tables, their budgets, and the exports that are their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sts_export.pruning.methods import METHODS

Setting = str | float


@dataclass(frozen=True)
class Variant:
    """An export and how it is asked.

    Args:
        name: of the row.
        method, stage1, stage2, dtype, quantize: as the options of ``sts-export`` take them; None: the default.
        eighths: ``--prune-layer``, in eighths of the model's layers; None: the method's.
        choices: other options of stages and positions, by the names of ``ExportRequest.choices``.
        ratio: K'/K that its counts are solved with; None: the method's.  It is no part of the export.
        inside_as_sts: where stage 1 keeps all and the budget cannot be reached, K' is that of ``sts``, not the budget itself.
    """

    name: str
    method: str | None = None
    stage1: str | None = None
    stage2: str | None = None
    eighths: int | None = None
    choices: tuple[tuple[str, Setting], ...] = ()
    ratio: float | None = None
    dtype: str | None = "float32"
    quantize: str | None = None
    inside_as_sts: bool = False


@dataclass(frozen=True)
class Table:
    """Variants by budgets.

    Args:
        name: as ``--tables`` takes it.
        title: of its section.
        questions: the first so many.
        budgets: average visual tokens of a layer.
        variants: asked with every budget.
        unpruned: asked with all tokens; the first one is what accuracies are relative to.
        base: variant that the others are tested against at the same budget.
        pairs: variants that are also tested against each other.
        kinds_at: budget at which accuracies are also shown by kind of question.
    """

    name: str
    title: str
    questions: int
    budgets: tuple[int, ...]
    variants: tuple[Variant, ...]
    unpruned: tuple[Variant, ...]
    base: str
    pairs: tuple[tuple[str, str], ...] = ()
    kinds_at: int | None = None


def _methods(*names: str) -> tuple[Variant, ...]:
    return tuple(Variant(name, method=name) for name in names)


def _formats(method: str) -> tuple[Variant, ...]:
    return (
        Variant("fp32", method=method),
        Variant("fp16", method=method, dtype="float16"),
        Variant("int8", method=method, dtype=None, quantize="int8"),
        Variant("int4", method=method, dtype=None, quantize="int4"),
    )


STS = Variant("sts", method="sts")
UNPRUNED = Variant("unpruned", method="none")
_LAYERS = {2: "T/4", 3: "3T/8", 4: "T/2", 5: "5T/8", 6: "3T/4"}
_ABLATIONS = (
    STS,
    *(replace(STS, name=f"prune layer {label}", eighths=eighths) for eighths, label in _LAYERS.items()),
    *(replace(STS, name=f"K'/K {ratio}", ratio=ratio) for ratio in (0.2, 0.3, 0.4, 0.5, 0.6)),
    *(replace(STS, name=f"anchor {anchor}", choices=(("anchor", anchor),)) for anchor in ("first", "saliency")),
    *(replace(STS, name=f"epsilon {epsilon:g}", choices=(("epsilon", epsilon),)) for epsilon in (1e-12, 1e-3, 1.0)),
    replace(STS, name="positions original", choices=(("positions", "original"),)),
    replace(STS, name="score layer next", choices=(("score_layer", "next"),)),
    Variant("without stage 1", stage1="keep-all", stage2="last-token", eighths=4, inside_as_sts=True),
    Variant("without stage 2", method="sts-s"),
)


def _ablations(budget: int) -> Table:
    title = f"Choices of STS at {budget}"
    return Table(f"ablations-{budget}", title, 1000, (budget,), _ABLATIONS, (UNPRUNED,), "sts")


TABLES = (
    Table(
        name="methods",
        title="All methods",
        questions=1000,
        budgets=(128, 64, 32, 16),
        variants=_methods(*(method.name for method in METHODS if method.name != UNPRUNED.method)),
        unpruned=(UNPRUNED,),
        base="sts",
        pairs=(("learnpruner", "random"), ("learnpruner", "fastervlm")),
    ),
    Table(
        name="budgets",
        title="Five methods, more questions",
        questions=2000,
        budgets=(192, 128, 64, 32, 16),
        variants=_methods("sts", "sts-s", "divprune", "fastervlm", "random"),
        unpruned=(UNPRUNED,),
        base="sts",
        kinds_at=64,
    ),
    _ablations(64),
    _ablations(32),
    Table("quantized", "Formats of weights", 1000, (64, 32), _formats("sts"), _formats("none"), "fp32"),
)
# Exports are made for all of them, so that tables share bundles and answers.
BUDGETS = tuple(sorted({budget for table in TABLES for budget in table.budgets}, reverse=True))


def find_table(name: str) -> Table:
    """One of TABLES."""
    return next(table for table in TABLES if table.name == name)
