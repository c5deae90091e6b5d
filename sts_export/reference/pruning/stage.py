"""What a stage of the reference is given, and what it answers.

A stage is a function; the settings of the pruning configuration are its keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Choices(NamedTuple):
    """Stage 1 in the order in which it happened.

    order: [K] int64, the tokens as they were chosen.
    margins: [K] float64, how clear each choice was: (runner-up - winner) / winner of the compared values, 0 for a tie,
        infinite where there was no choice. A small margin marks a choice that rounding may turn.  Empty where a stage compares
        nothing that rounding may turn.
    """

    order: Tensor
    margins: Tensor = torch.empty(0, dtype=torch.float64)


class Kept(NamedTuple):
    """What stage 2 keeps.

    chosen: [min(K', V)] int64 of the V visual tokens, counted from the first one, ascending.
    scores: [V] float32, larger is kept rather; none where a stage has none.
    """

    chosen: Tensor
    scores: Tensor | None = None


class Prefill(NamedTuple):
    """The prompt where stage 2 looks at it: S rows, V of them visual.

    visual: [S] bool.
    own, next: query [H, S, D] and key [H_kv, S, D], rotated, of the last layer before the stage and of the first after it;
        computed when they are called.
    scale: of attention's products.
    """

    visual: Tensor
    own: Callable[[], tuple[Tensor, Tensor]]
    next: Callable[[], tuple[Tensor, Tensor]]
    scale: float


class Stage1Reference(Protocol):
    """``min(keep, N)`` of the N tokens of one crop.

    features: [N, C], any float type.
    tower: what else the vision tower gives by name, such as ``cls_attention``: [N] float32; only what the family has.
    """

    def __call__(self, features: Tensor, keep: int, tower: Mapping[str, Tensor], /, **settings: object) -> Choices: ...


class Stage2Reference(Protocol):
    """``min(keep, V)`` of the visual tokens."""

    def __call__(self, prefill: Prefill, keep: int, /, **settings: object) -> Kept: ...
