"""What the host feeds to the decoder's parts, by part and by the names of their contracts.

Whatever else a part takes comes from the engine by its name: from the selector, or from the part before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sts_export.graphs.contracts import PASSED_ON, GraphContract
from sts_export.graphs.decoder.parts import DecoderPart
from sts_export.media.prepared import PreparedImage
from sts_export.requests.rows import PromptRows

Integers = NDArray[np.int64]
PartFeeds = dict[str, dict[str, Integers]]


class Prompt(Protocol):
    """What stages know of a request beside its pictures; a :class:`sts_export.requests.request.Request` is one."""

    @property
    def text_ids(self) -> Integers:
        """[text] int64, the text tokens of the prompt."""

    @property
    def seed(self) -> int:
        """Of stages that draw."""


@dataclass(frozen=True)
class Prefill:
    """A prompt for all parts.

    Args:
        feeds: part -> input -> array, of a batch of one.
        rows: cache rows that the prompt takes in each part.
        next_positions: rotary position of the first generated token in each part.
    """

    feeds: PartFeeds
    rows: tuple[int, ...]
    next_positions: tuple[int, ...]


def selector_feeds(contract: GraphContract, image: PreparedImage, keep: int, prompt: Prompt) -> dict[str, NDArray[Any]]:
    """What the selector takes beside the encoder's outputs.

    Args:
        contract: the selector's.
        keep: K of the image.
        prompt: that the image belongs to.
    """
    feeds: dict[str, NDArray[Any]] = {
        "token_order": image.token_order,
        "quota": image.quota(keep),
        "text_ids": prompt.text_ids,
        "seed": np.array([prompt.seed], np.int64),
        "grid_columns": np.array([image.crop_columns], np.int64),
    }
    return {spec.name: feeds[spec.name] for spec in contract.inputs if spec.name in feeds}


def prefill_feeds(
    parts: Sequence[DecoderPart],
    prompt: PromptRows,
    visual: Sequence[int],
    *,
    whole: bool,
    survivors_keep_positions: bool,
    seed: int | None = None,
) -> Prefill:
    """One prompt, from the first cache row on.

    Args:
        parts: of the decoder.
        prompt: rows of the first part.
        visual: visual rows in each part.
        whole: no visual token of the prompt is ever dropped: it is the unpruned model's, with its positions.
        survivors_keep_positions: each row has one position in all parts; otherwise rows are contiguous in every part.
        seed: of the stages inside the LLM, where they draw; None where they do not.
    """
    axes, length = prompt.position_ids.shape[:-1], len(prompt.input_ids)
    rows = tuple(length - visual[0] + count for count in visual)
    feeds: PartFeeds = {}
    following: list[int] = []
    for index, part in enumerate(parts):
        given = feeds[part.name] = {"write_index": np.zeros(1, np.int64)}
        if part.is_first:
            given["input_ids"] = prompt.input_ids[None]
            given["attention_mask"] = np.ones((1, length), np.int64)
            given["position_ids"] = prompt.position_ids[None]
            following.append(prompt.next_position)
        elif survivors_keep_positions or whole:
            # With nothing dropped they are those of the prompt; otherwise the part before passes on those of its survivors.
            if whole and not survivors_keep_positions:
                given["position_ids"] = prompt.position_ids[None]
            following.append(prompt.next_position)
        else:
            given["position_ids"] = np.broadcast_to(np.arange(rows[index]), (1, *axes, rows[index]))
            following.append(rows[index])
        if not part.is_last:
            # Without visual rows there is one of no meaning, which survives.
            given["stage2_slots"] = np.zeros(visual[index + 1] if visual[0] else 1, np.int64)
            if seed is not None:
                given["seed"] = np.array([seed], np.int64)
    return Prefill(feeds, rows, tuple(following))


def decode_feeds(
    parts: Sequence[DecoderPart],
    tokens: Integers,
    write_index: Sequence[Integers],
    positions: Sequence[Integers],
    *,
    mrope: bool,
    survivors_keep_positions: bool,
    draws: bool = False,
) -> PartFeeds:
    """One token of every slot: :func:`text_feeds` of one row, with ``tokens`` [slots] int64."""
    return text_feeds(
        parts,
        tokens[:, None],
        write_index,
        positions,
        mrope=mrope,
        survivors_keep_positions=survivors_keep_positions,
        draws=draws,
    )


def text_feeds(
    parts: Sequence[DecoderPart],
    tokens: Integers,
    write_index: Sequence[Integers],
    positions: Sequence[Integers],
    *,
    mrope: bool,
    survivors_keep_positions: bool,
    draws: bool = False,
) -> PartFeeds:
    """Text that goes on behind what the caches hold; every row survives.

    Args:
        tokens: [slots, rows] int64.
        write_index: [slots] int64 of each part; cache row that the first of these rows takes.
        positions: [slots] int64 of each part; its rotary position, from which those of the others follow.
        mrope: positions have time, height and width.
        survivors_keep_positions: as for :func:`prefill_feeds`.
        draws: stages inside the LLM take a seed; in this phase it is of no meaning.
    """
    feeds: PartFeeds = {}
    for part, index, position in zip(parts, write_index, positions, strict=True):
        given = feeds[part.name] = {"write_index": index}
        if part.is_first:
            given["input_ids"] = tokens
            given["attention_mask"] = np.ones(tokens.shape, np.int64)
        if part.is_first or not survivors_keep_positions:
            of_rows = position[:, None] + np.arange(tokens.shape[1])
            given["position_ids"] = np.repeat(of_rows[:, None], 3, axis=1) if mrope else of_rows
        if not part.is_last:
            given["stage2_slots"] = np.zeros(1, np.int64)
            if draws:
                given["seed"] = np.zeros(len(tokens), np.int64)
    return feeds


def passed_on(contract: GraphContract, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of what ran before, what a graph takes: by the same name, or as ``PASSED_ON`` says."""
    names = {spec.name: PASSED_ON.get(spec.name, spec.name) for spec in contract.inputs}
    return {name: outputs[theirs] for name, theirs in names.items() if theirs in outputs}
