"""What a stage of the reference is given, and what it answers.

A stage is a function; the settings of the pruning configuration are its keyword arguments.  What is chosen follows from scores
that are float64 as far as the tower and the LLM allow, and rounded to float32 once, so that what is equal is a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Crop(NamedTuple):
    """The candidates of one crop, N of them, where stage 1 looks at them.

    features: [N, C], any float type; of Qwen2.5-VL the merger's output.
    tower: what else the vision tower gives by its name in ``graphs.needs``, such as ``cls_attention``: [N] float32 or
        [N, ...]; only what the family has, and ``cls_features`` apart.
    picture: [M, C], the features of all candidates of all crops of the picture.
    places: [N, 2] int64, row and column of each in the crop's grid of ``grid`` (rows, columns).
    number: of the crop in the picture, from 0; ``alone``: the model's pictures have one crop.
    project: [n, C] -> [n, D], as the LLM takes tokens.
    text: [T, D], embeddings of the prompt's text tokens, all of them.
    seed: the request's.
    cls: [C], the crop's CLS token in the feature layer; none without one.
    weights: of a learned selector, by name; empty without one.
    """

    features: Tensor
    tower: Mapping[str, Tensor]
    picture: Tensor
    places: Tensor
    grid: tuple[int, int]
    number: int = 0
    alone: bool = True
    project: Callable[[Tensor], Tensor] = lambda rows: rows
    text: Tensor = torch.empty(0, 0)
    seed: int = 0
    cls: Tensor | None = None
    weights: Mapping[str, Tensor] = {}


CLS = -1  # in Choices.order: the crop's CLS token


class Choices(NamedTuple):
    """Stage 1 in the order in which it happened.

    order: [K] int64, the tokens as they were chosen; CLS for the crop's CLS token.
    features: [N, C], the crop's tokens after others were merged into them; none where nothing is merged.
    joined: [N] int64, the token of the crop that each one was merged into, -1 for none; none where nothing is merged.
    last: [K] bool, of ``order``: rows that stand behind all others in the prompt; none: all are in reading order.
    margins: [K] float64, how clear each choice was: the distance of winner and runner-up, relative to the winner, or to the
        numbers that the compared values are differences of, such as 1 for cosines; 0 for a tie, infinite where there was no
        choice.  A small margin marks a choice that rounding may turn, what is merged into a token included.  Empty where a
        stage compares nothing that rounding may turn.
    """

    order: Tensor
    margins: Tensor = torch.empty(0, dtype=torch.float64)
    features: Tensor | None = None
    joined: Tensor | None = None
    last: Tensor | None = None


class Kept(NamedTuple):
    """What stage 2 keeps.

    chosen: [min(K', V)] int64 of the V visual tokens, counted from the first one, ascending.
    scores: [V] float32, larger is kept rather; none where a stage has none.
    margin: how clear, relative, the closest choice was that the scores rest on, such as that of pivots.
    """

    chosen: Tensor
    scores: Tensor | None = None
    margin: float = math.inf


class Prefill(NamedTuple):
    """The prompt where stage 2 looks at it: S rows, V of them visual.

    visual: [S] bool.
    own, next: query [H, S, D] and key [H_kv, S, D], rotated, of the last layer before the stage and of the first after it;
        computed when they are called.
    scale: of attention's products.
    text: [S] bool, rows that are text: neither visual nor newlines.
    final: hidden states [S, D] that enter the first layer after the stage, after the decoder's final norm; computed when
        called.
    seed: the request's.
    """

    visual: Tensor
    own: Callable[[], tuple[Tensor, Tensor]]
    next: Callable[[], tuple[Tensor, Tensor]]
    scale: float
    text: Tensor
    final: Callable[[], Tensor]
    seed: int = 0


class Stage1Reference(Protocol):
    """``keep`` of the N tokens of one crop, 1 <= keep < N."""

    def __call__(self, crop: Crop, keep: int, /, **settings: object) -> Choices: ...


class Stage2Reference(Protocol):
    """``min(keep, V)`` of the visual tokens."""

    def __call__(self, prefill: Prefill, keep: int, /, **settings: object) -> Kept: ...
