"""From what a user asks for to a pruning configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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

# A stage as it is written: its name and its settings.
Spec = tuple[str, dict[str, str]]


@dataclass(frozen=True)
class StageChoice:
    """What was asked for of the stages.

    Args:
        method: a pair by its name; None: the one of the two stages, if it has a name, and then with its settings.
        stage1, stage2: ``NAME`` or ``NAME:key=value,key=value``; None: the method's, of the default method if need be.
        settings: values of single settings by name, for the stage that has one of that name.
    """

    method: str | None = None
    stage1: str | None = None
    stage2: str | None = None
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StagePair:
    """What follows: the method, and both stages."""

    method: Method
    stage1: Stage1
    stage2: Stage2

    @property
    def ratio(self) -> float:
        """K'/K that budgets are solved with."""
        return 1.0 if self.stage2.keeps_all else self.method.ratio

    @property
    def positions(self) -> Positions:
        """What is done with positions where nothing is asked for and the model does not decide."""
        return "keep" if self.method.keeps_positions else "reindex"

    @property
    def keeps_all(self) -> bool:
        """Neither stage drops anything."""
        return self.stage1.keeps_all and self.stage2.keeps_all


def choose_stages(choice: StageChoice, gives: frozenset[str] | None = None) -> StagePair:
    """The stages that are meant.

    Args:
        gives: what the vision tower gives, for methods whose stage 1 depends on it; None: the preferred one will do.

    Raises:
        BudgetError: an unknown name or setting, a value that is impossible or given twice, or a stage that is not the
            method's.
    """
    written: dict[Kind, str | None] = {"stage1": choice.stage1, "stage2": choice.stage2}
    asked = {kind: None if text is None else split_spec(text) for kind, text in written.items()}
    method = _method_of(asked) if choice.method is None else find_method(choice.method)
    own2 = _own_specs(method, "stage2", asked)[0]
    pairs = (_make_pair(method, (own1, own2), asked, choice.settings or {}) for own1 in _own_specs(method, "stage1", asked))
    first = next(pairs)
    if gives is None or first.stage1.needs <= (known := gives | OF_SELECTOR):
        return first
    return next((pair for pair in pairs if pair.stage1.needs <= known), first)


def _method_of(asked: Mapping[Kind, Spec | None]) -> Method:
    """The first method that has this pair of stages, or one made of it; what is not asked for is the default method's."""
    name1 = (asked["stage1"] or split_spec(METHODS[0].stage1))[0]
    name2 = (asked["stage2"] or split_spec(METHODS[0].stage2))[0]
    for method in METHODS:
        if (split_spec(method.stage1)[0], split_spec(method.stage2)[0]) == (name1, name2):
            return method
    return Method(f"{name1}{PAIR}{name2}", "", name1, name2)


def _own_specs(method: Method, kind: Kind, asked: Mapping[Kind, Spec | None]) -> list[Spec]:
    """The method's stages of one kind, in its order; only those of the name that is asked for.

    Raises:
        BudgetError: it has none of that name.
    """
    specs = [split_spec(text) for text in (method.stage1_choices if kind == "stage1" else (method.stage2,))]
    wanted = asked[kind]
    fitting = [spec for spec in specs if wanted is None or spec[0] == wanted[0]]
    if wanted is not None and not fitting:
        names = _either(dict.fromkeys(name for name, _ in specs))
        raise BudgetError(f"--{kind} {wanted[0]} is not that of method {method.name} ({names}): leave --method or it out")
    return fitting


def _make_pair(
    method: Method, own: tuple[Spec, Spec], asked: Mapping[Kind, Spec | None], settings: Mapping[str, Any]
) -> StagePair:
    """Both stages with the method's settings, and in their places those that are asked for."""
    (name1, own1), (name2, own2) = own
    types: dict[Kind, type[Stage]] = {"stage1": find_stage1(name1), "stage2": find_stage2(name2)}
    given = {kind: read_settings(types[kind], spec[1]) if spec else {} for kind, spec in asked.items()}
    for key, value in settings.items():
        kind = _owner(key, types)
        if key in given[kind]:
            raise BudgetError(f"{key} is given with --{kind} and by itself: give it once")
        given[kind][key] = value
    stage1 = make_stage(types["stage1"], {**read_settings(types["stage1"], own1), **given["stage1"]})
    stage2 = make_stage(types["stage2"], {**read_settings(types["stage2"], own2), **given["stage2"]})
    assert isinstance(stage1, Stage1) and isinstance(stage2, Stage2)
    return StagePair(method, stage1, stage2)


def _either(names: Iterable[str]) -> str:
    """``a, b or c``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


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


def check_needs(stage: Stage1, gives: frozenset[str], family: str, method: str | None = None) -> None:
    """The vision tower gives what the stage needs.

    Args:
        method: the method that was asked for, if one was.

    Raises:
        BudgetError: it does not; says which settings, methods or stages would do.
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
            raise BudgetError(f"{what} needs {needed}, which {family} has not: choose {_either(fitting)}")
    if method is not None:
        choices = _either(name for name in method_names() if _can_be_had(name, gives))
        raise BudgetError(f"method {method} needs {needed}, which {family} has not: choose --method {choices}")
    names = [name for name in own_stage_names("stage1") if make_stage(find_stage1(name), {}).needs <= gives]
    raise BudgetError(f"stage 1 {stage.name} needs {needed}, which {family} has not: choose --stage1 {_either(names)}")


def _can_be_had(name: str, gives: frozenset[str]) -> bool:
    """Whether a tower that gives this gives what one of the method's stages needs; not of a method that is broken."""
    try:
        return choose_stages(StageChoice(name), gives).stage1.needs <= gives
    except BudgetError:
        return False


def config_for_budget(
    budget: str,
    *,
    num_visual_tokens: int,
    num_layers: int,
    prune_layer: int | None = None,
    ratio: float | None = None,
    positions: Positions | None = None,
    gives: frozenset[str] | None = None,
    method: str | None = None,
    stage1: str | None = None,
    stage2: str | None = None,
    **settings: Any,
) -> PruningConfig:
    """The configuration for ``--budget``.

    Args:
        ratio: K'/K; None takes the method's.  What drops nothing inside the LLM has 1 whatever is given.
        positions: None takes the method's.
        gives: as for :func:`choose_stages`.
        method, stage1, stage2, settings: as in :class:`StageChoice`.

    Raises:
        BudgetError: unreachable budget, unknown method or stage, or an impossible choice.
    """
    pair = choose_stages(StageChoice(method, stage1, stage2, settings), gives)
    layer = pair.method.layer(num_layers) if prune_layer is None else prune_layer
    check_prune_layer(layer, num_layers)
    ratio = pair.ratio if ratio is None or pair.ratio == 1 else ratio
    all_before = pair.stage1.keeps_all
    target = parse_budget(budget, num_visual_tokens)
    if pair.keeps_all and target != num_visual_tokens:
        raise BudgetError(f"method {pair.method.name} prunes nothing: leave --budget out, or give 100%")
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
        pair.method.name,
        pair.stage1,
        pair.stage2,
        positions=positions or pair.positions,
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
    positions: Positions | None = None,
    gives: frozenset[str] | None = None,
    method: str | None = None,
    stage1: str | None = None,
    stage2: str | None = None,
    **settings: Any,
) -> PruningConfig:
    """The configuration for ``--keep``; arguments and errors as for :func:`config_for_budget`."""
    pair = choose_stages(StageChoice(method, stage1, stage2, settings), gives)
    layer = pair.method.layer(num_layers) if prune_layer is None else prune_layer
    return PruningConfig(
        num_visual_tokens,
        num_layers,
        layer,
        keep_stage1,
        keep_stage2,
        pair.method.name,
        pair.stage1,
        pair.stage2,
        positions=positions or pair.positions,
        ratio=DEFAULT_RATIO,
    )


def list_methods() -> str:
    """Methods, stages and settings that are there, a line each."""
    sections: tuple[tuple[str, list[str], Callable[[str], list[str]]], ...] = (
        ("methods (--method):", method_names(), _method_lines),
        ("stage 1 (--stage1):", stage_names("stage1"), lambda name: _stage_lines(find_stage1(name))),
        ("stage 2 (--stage2):", stage_names("stage2"), lambda name: _stage_lines(find_stage2(name))),
    )
    width = max(len(name) for _, names, _ in sections for name in names)
    lines = []
    for title, names, describe in sections:
        lines += [title, *(line for name in names for line in _lines(name, describe, width))]
    return "\n".join(lines)


def _lines(name: str, describe: Callable[[str], list[str]], width: int) -> list[str]:
    """What is said of a stage or method; of one that another package brings broken, what is wrong with it."""
    try:
        first, *others = describe(name)
    except BudgetError as error:
        first, others = str(error), []
    return [f"  {name:<{width}}  {first}", *(f"    {line}" for line in others)]


def _method_lines(name: str) -> list[str]:
    method = find_method(name)
    return [f"{method.summary}: {_either(method.stage1_choices)}, then {method.stage2}"]


def _stage_lines(stage: type[Stage]) -> list[str]:
    return [stage.summary, *(_setting_line(stage, key) for key in setting_types(stage))]


def _setting_line(stage: type[Stage], key: str) -> str:
    kind = setting_types(stage)[key]
    allowed = "|".join(map(str, choices_of(kind))) or kind.__name__
    default = next(field.default for field in fields(stage) if field.name == key)
    return f"{key}={allowed} ({'required' if default is MISSING else f'default: {default}'})"
