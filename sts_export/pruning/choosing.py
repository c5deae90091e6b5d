"""From what a user asks for to a pruning configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from sts_export.errors import BudgetError
from sts_export.graphs.needs import OF_SELECTOR
from sts_export.pruning.budget import DEFAULT_RATIO, check_share, lowest_average, parse_budget, solve_budget
from sts_export.pruning.config import PAIR, Positions, PruningConfig, check_prune_layer
from sts_export.pruning.methods import METHODS, Method
from sts_export.pruning.registry import Kind, find_method, find_stage1, find_stage2, method_names, own_stage_names, stage_names
from sts_export.pruning.settings import choices_of, make_stage, read_settings, setting_types, split_spec
from sts_export.pruning.stage import WORDS, Stage, Stage1, Stage2


@dataclass(frozen=True)
class StageChoice:
    """What was asked for of the stages.

    Args:
        method: a pair by its name; None: the one of the two stages, if it has a name.
        stage1, stage2: ``NAME`` or ``NAME:key=value,key=value``; None: the method's, of the default method if need be.
        settings: values of single settings by name, for the stage that has one of that name.
    """

    method: str | None = None
    stage1: str | None = None
    stage2: str | None = None
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StagePair:
    """What follows: the method, its name in the manifest, and both stages."""

    method: Method
    name: str
    stage1: Stage1
    stage2: Stage2

    @property
    def ratio(self) -> float:
        """K'/K that budgets are solved with."""
        return 1.0 if self.stage2.keeps_all else self.method.ratio

    @property
    def keeps_all(self) -> bool:
        """Neither stage drops anything."""
        return self.stage1.keeps_all and self.stage2.keeps_all


def choose_stages(choice: StageChoice) -> StagePair:
    """The stages that are meant.

    Raises:
        BudgetError: an unknown name or setting, a value that is impossible or given twice, or a stage that is not the
            method's.
    """
    method = METHODS[0] if choice.method is None else find_method(choice.method)
    kinds: tuple[Kind, ...] = ("stage1", "stage2")
    names, values, types = {}, {}, {}
    for kind in kinds:
        name, own = split_spec(getattr(method, kind))
        asked = getattr(choice, kind)
        names[kind], given = (name, {}) if asked is None else split_spec(asked)
        if choice.method is not None and names[kind] != name:
            raise BudgetError(f"--{kind} {names[kind]} is not that of method {method.name} ({name}): leave --method or it out")
        types[kind] = find_stage1(names[kind]) if kind == "stage1" else find_stage2(names[kind])
        base = read_settings(types[kind], own) if names[kind] == name else {}
        values[kind] = (base, read_settings(types[kind], given))
    for key, value in (choice.settings or {}).items():
        kind = _owner(key, types)
        if key in values[kind][1]:
            raise BudgetError(f"{key} is given with --{kind} and by itself: give it once")
        values[kind][1][key] = value
    stage1, stage2 = (make_stage(types[kind], {**values[kind][0], **values[kind][1]}) for kind in kinds)
    assert isinstance(stage1, Stage1) and isinstance(stage2, Stage2)
    if choice.method is None:
        method, label = _method_of(stage1, stage2)
    else:
        label = method.name
    return StagePair(method, label, stage1, stage2)


def _owner(key: str, types: Mapping[Kind, type[Stage]]) -> Kind:
    """The kind of the stage that has the setting."""
    having = [kind for kind, stage in types.items() if key in setting_types(stage)]
    if len(having) == 1:
        return having[0]
    if having:
        raise BudgetError(f"both stages have a setting {key}: give it with --stage1 or --stage2")
    for kind, stage in types.items():
        for name in own_stage_names(kind):
            other = find_stage1(name) if kind == "stage1" else find_stage2(name)
            if key in setting_types(other):
                raise BudgetError(
                    f"{key} is a setting of stage {kind[-1]} {name}, not of {stage.name}: "
                    f"leave it out or choose --{kind} {name}"
                )
    raise BudgetError(f"no pruning stage has a setting {key!r}: leave it out")


def _method_of(stage1: Stage1, stage2: Stage2) -> tuple[Method, str]:
    """The first method that is this pair, or one made of it."""
    for method in METHODS:
        if (split_spec(method.stage1)[0], split_spec(method.stage2)[0]) == (stage1.name, stage2.name):
            return method, method.name
    label = f"{stage1.name}{PAIR}{stage2.name}"
    return Method(label, "", stage1.name, stage2.name), label


def check_needs(stage: Stage1, gives: frozenset[str], family: str) -> None:
    """The vision tower gives what the stage needs.

    Raises:
        BudgetError: it does not; says which settings or stages would do.
    """
    gives |= OF_SELECTOR
    missing = sorted(stage.needs - gives)
    if not missing:
        return
    needed = " and ".join(dict.fromkeys(WORDS.get(need, need.replace("_", " ")) for need in missing))
    for field in fields(stage):
        others = [value for value in choices_of(setting_types(type(stage))[field.name]) if value != getattr(stage, field.name)]
        fitting = [str(value) for value in others if replace(stage, **{field.name: value}).needs <= gives]
        if fitting:
            what = f"{field.name.replace('_', ' ')} {getattr(stage, field.name)}"
            raise BudgetError(f"{what} needs {needed}, which {family} has not: choose {' or '.join(fitting)}")
    names = [name for name in own_stage_names("stage1") if make_stage(find_stage1(name), {}).needs <= gives]
    raise BudgetError(f"stage 1 {stage.name} needs {needed}, which {family} has not: choose --stage1 {' or '.join(names)}")


def config_for_budget(
    budget: str,
    *,
    num_visual_tokens: int,
    num_layers: int,
    prune_layer: int | None = None,
    ratio: float | None = None,
    positions: Positions = "reindex",
    method: str | None = None,
    stage1: str | None = None,
    stage2: str | None = None,
    **settings: Any,
) -> PruningConfig:
    """The configuration for ``--budget``.

    Args:
        ratio: K'/K; None takes the method's.  What drops nothing inside the LLM has 1 whatever is given.
        method, stage1, stage2, settings: as in :class:`StageChoice`.

    Raises:
        BudgetError: unreachable budget, unknown method or stage, or an impossible choice.
    """
    pair = choose_stages(StageChoice(method, stage1, stage2, settings))
    layer = pair.method.prune_layer(num_layers) if prune_layer is None else prune_layer
    check_prune_layer(layer, num_layers)
    ratio = pair.ratio if ratio is None or pair.ratio == 1 else ratio
    all_before = pair.stage1.keeps_all
    target = parse_budget(budget, num_visual_tokens)
    if pair.keeps_all and target != num_visual_tokens:
        raise BudgetError(f"method {pair.name} prunes nothing: leave --budget out, or give 100%")
    if budget.strip().endswith("%"):
        check_share(budget, num_visual_tokens, lowest_average(num_visual_tokens, num_layers, layer, all_before=all_before))
    keep1, keep2 = solve_budget(
        target,
        num_visual_tokens=num_visual_tokens,
        num_layers=num_layers,
        prune_layer=layer,
        ratio=ratio,
        all_before=all_before,
    )
    return PruningConfig(
        num_visual_tokens,
        num_layers,
        layer,
        keep1,
        keep2,
        pair.name,
        pair.stage1,
        pair.stage2,
        positions=positions,
        budget=budget,
        ratio=ratio,
    )


def config_for_counts(
    num_visual_tokens: int,
    num_layers: int,
    prune_layer: int | None,
    keep_stage1: int,
    keep_stage2: int,
    *,
    positions: Positions = "reindex",
    method: str | None = None,
    stage1: str | None = None,
    stage2: str | None = None,
    **settings: Any,
) -> PruningConfig:
    """The configuration for ``--keep``; arguments and errors as for :func:`config_for_budget`."""
    pair = choose_stages(StageChoice(method, stage1, stage2, settings))
    layer = pair.method.prune_layer(num_layers) if prune_layer is None else prune_layer
    return PruningConfig(
        num_visual_tokens,
        num_layers,
        layer,
        keep_stage1,
        keep_stage2,
        pair.name,
        pair.stage1,
        pair.stage2,
        positions=positions,
        ratio=DEFAULT_RATIO,
    )


def list_methods() -> str:
    """Methods, stages and settings that are there, a line each."""
    lines = ["methods (--method):", *(line for name in method_names() for line in _lines(name, _method_lines))]
    kinds: tuple[tuple[str, Kind, Callable[[str], list[str]]], ...] = (
        ("stage 1 (--stage1):", "stage1", lambda name: _stage_lines(find_stage1(name))),
        ("stage 2 (--stage2):", "stage2", lambda name: _stage_lines(find_stage2(name))),
    )
    for title, kind, of_stage in kinds:
        lines += [title, *(line for name in stage_names(kind) for line in _lines(name, of_stage))]
    return "\n".join(lines)


def _lines(name: str, describe: Callable[[str], list[str]]) -> list[str]:
    """What is said of a stage or method; of one that another package brings broken, what is wrong with it."""
    try:
        first, *others = describe(name)
    except BudgetError as error:
        first, others = str(error), []
    return [f"  {name:<14}{first}", *(f"    {line}" for line in others)]


def _method_lines(name: str) -> list[str]:
    method = find_method(name)
    return [f"{method.summary}: {method.stage1}, then {method.stage2}"]


def _stage_lines(stage: type[Stage]) -> list[str]:
    return [stage.summary, *(_setting_line(stage, key) for key in setting_types(stage))]


def _setting_line(stage: type[Stage], key: str) -> str:
    kind = setting_types(stage)[key]
    allowed = "|".join(map(str, choices_of(kind))) or kind.__name__
    default = next(field.default for field in fields(stage) if field.name == key)
    return f"{key}={allowed} ({'required' if default is MISSING else f'default: {default}'})"
