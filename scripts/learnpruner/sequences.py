"""Many answers about the same pictures in one sequence.

    prefix with the pictures | question answer | question answer | …

Every segment sees the prefix and itself, and its positions continue the prefix's: exactly the separate conversations, at the
price of little more than one.  An answer in a later turn is a segment that begins with the turns before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.learnpruner.conversations import IMAGE, Conversation
from sts_export.errors import RequestError
from sts_export.reference import ReferenceModel
from sts_export.reference.prompt import NEWLINE, ImageInput

IGNORED = -100


@dataclass(frozen=True)
class Group:
    """Conversations about the same pictures after the same beginning; answers: (conversation, turn) of each."""

    conversations: tuple[Conversation, ...]
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Packed:
    """One sequence of S rows.

    ids: [S] int64, image tokens where pictures and their newlines are; positions: [axes, S] int64; allowed: [S, S] bool;
    targets: [S] int64, the next token where it is part of an answer, else IGNORED; visual: of each picture the rows of its
    tokens, [N] int64; newlines: [rows] int64.
    """

    ids: Tensor
    positions: Tensor
    allowed: Tensor
    targets: Tensor
    visual: tuple[Tensor, ...]
    newlines: Tensor


def grouped(conversations: Sequence[Conversation]) -> list[Group]:
    """In the order in which their first conversations come."""
    found: dict[Any, list[Conversation]] = {}
    for conversation in conversations:
        if conversation.answers:
            found.setdefault((conversation.images, conversation.before), []).append(conversation)
    return [
        Group(tuple(some), tuple((number, turn) for number, each in enumerate(some) for turn in each.answers))
        for some in found.values()
    ]


@dataclass(frozen=True)
class _Segment:
    """ids and targets [n] of what comes after the pictures; prefix: rows up to there; positions: [axes, prefix + n]."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    prefix: tuple[int, ...]
    positions: Tensor
    starts: tuple[int, ...]


def pack(
    model: ReferenceModel, group: Group, order: Sequence[int], images: Sequence[ImageInput], most_rows: int
) -> Packed | None:
    """As many of the group's answers as fit, in this order; None where not even the first does.

    Args:
        order: numbers of answers of the group.
        images: the group's pictures.
    """
    chosen: list[_Segment] = []
    rows = 0
    for number in order:
        which, turn = group.answers[number]
        segment = _segment(model, group.conversations[which], turn, images)
        if chosen and segment.prefix != chosen[0].prefix:
            continue  # a tokenizer may join what is before the last picture's end with what follows
        rows += len(segment.ids) + (0 if chosen else len(segment.prefix))
        if rows > most_rows:
            break
        chosen.append(segment)
    return _joined(chosen, images) if chosen else None


def _segment(model: ReferenceModel, conversation: Conversation, turn: int, images: Sequence[ImageInput]) -> _Segment:
    text = model.render([_message(model_turn.role, model_turn.parts) for model_turn in conversation.turns[:turn]])
    asked = _tokens(model, text)
    answer = conversation.turns[turn].text
    whole = _tokens(model, text + ("" if text[-1:].isspace() else " ") + answer)
    begin = next((i for i, (old, new) in enumerate(zip(asked, whole, strict=False)) if old != new), len(asked))
    ids = [*whole, _end(model)]
    prompt = model.expand(ids, images)
    begin += len(prompt.ids) - len(ids)
    prefix = prompt.starts[-1] + len(images[-1].layout)
    if begin <= prefix:
        raise RequestError("the chat template puts an answer right behind the picture: use another checkpoint")
    positions, _ = model.positions(prompt, torch.arange(len(prompt.ids) - 1), original=True)
    following = range(prefix + 1, len(prompt.ids))
    targets = tuple(prompt.ids[row] if row >= begin else IGNORED for row in following)
    return _Segment(prompt.ids[prefix:-1], targets, prompt.ids[:prefix], positions, prompt.starts)


def _message(role: str, parts: Sequence[str]) -> dict[str, Any]:
    content = [{"type": "image"} if part == IMAGE else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def _tokens(model: ReferenceModel, text: str) -> list[int]:
    tokenizer = model.processor.tokenizer
    has_start = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not has_start)["input_ids"]
    return ids


def _end(model: ReferenceModel) -> int:
    """The token that ends an answer."""
    own: int | None = model.processor.tokenizer.eos_token_id
    if own is not None and (own in model.eos_tokens or not model.eos_tokens):
        return own
    if not model.eos_tokens:
        raise RequestError("neither tokenizer nor generation settings name a token that ends an answer: add eos_token")
    return min(model.eos_tokens)


def _joined(segments: Sequence[_Segment], images: Sequence[ImageInput]) -> Packed:
    first = segments[0]
    before = len(first.prefix)
    number = torch.tensor([-1] * before + [i for i, segment in enumerate(segments) for _ in segment.ids])
    same = (number[:, None] == number[None]) | (number[None] == -1)
    allowed = same & torch.ones(len(number), len(number), dtype=torch.bool).tril()
    positions = torch.cat([first.positions[:, :before], *(segment.positions[:, before:] for segment in segments)], 1)
    visual, newlines = [], []
    for start, image in zip(first.starts, images, strict=True):
        layout = torch.tensor(image.layout)
        visual.append(start + (layout != NEWLINE).nonzero()[:, 0])
        newlines.append(start + (layout == NEWLINE).nonzero()[:, 0])
    return Packed(
        torch.tensor([*first.prefix, *(token for segment in segments for token in segment.ids)]),
        positions,
        allowed,
        torch.tensor([IGNORED] * before + [token for segment in segments for token in segment.targets]),
        tuple(visual),
        torch.cat(newlines),
    )
