"""What free slots still hold of earlier requests, and where a new request finds the beginning of its prompt.

A conversation is what a slot's caches hold: a prompt, with pictures, and what was generated but for the last token, which is
never written.  A prompt that begins with it is not computed again so far: with the next turn of a chat only its text is new.

The rows of pictures stay as they were chosen for the prompt that they came with.  So a prompt must begin with all of that one
where the choice depends on its words, and with all that lies before the last picture's end where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from sts_export.bundle.manifest import Manifest
from sts_export.generation.decoding import Decoding
from sts_export.generation.graph_runner import NextToken, Prefilled
from sts_export.generation.slots import Slot
from sts_export.graphs.needs import SEED, TEXT
from sts_export.media.content import content_key
from sts_export.media.prepared import PreparedImage
from sts_export.requests.request import Request

# More slots keep more conversations, but a step computes all up to the highest one in use, idle ones among them.
_FEW_SLOTS = 4  # may be computed for any number of requests
_SLOTS_PER_REQUEST = 2  # may be computed beyond that

Pictures = tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """What the caches hold in a slot.

    Args:
        ids: [rows of the first part] int64, VISUAL_ROW in every place of a picture, newlines included.
        pictures: of :func:`pictures_of`.
        prefilled: of the request that was the last to have the slot.
        settled: rows that a prompt must begin with to have the same pictures with the same tokens chosen.
        used: when, counted.
    """

    ids: NDArray[np.int64]
    pictures: Pictures
    prefilled: Prefilled
    settled: int
    used: int

    def shared(self, request: Request, pictures: Pictures) -> int:
        """Rows of a prompt that need not be computed again; 0 where its pictures are others."""
        if pictures != self.pictures:
            return 0
        length = min(len(self.ids), len(request.input_ids))
        differ = np.flatnonzero(self.ids[:length] != request.input_ids[:length])
        same = int(differ[0]) if len(differ) else length
        return min(same, len(request.input_ids) - 1) if same >= self.settled else 0


@dataclass(frozen=True)
class Place:
    """A free slot for a request, and how much of its prompt is there: what :meth:`Decoding.add` takes."""

    number: int
    earlier: tuple[Prefilled, int] | None


class Prefixes:
    """The conversations in the free slots of one :class:`Decoding`.

    Args:
        decoding: whose slots are given out by :meth:`place` only.
        manifest: of its bundle.
    """

    def __init__(self, decoding: Decoding, manifest: Manifest) -> None:
        self._decoding, self._manifest = decoding, manifest
        self._conversations: dict[int, Conversation] = {}
        self._clock = count()

    def pictures_of(self, request: Request) -> Pictures:
        """What the rows of its pictures follow from, beside the text: content, layout, how many tokens are kept, and the seed
        of stages that draw."""
        pruning = self._manifest.pruning
        seed = request.seed if SEED in pruning.stage1_needs or pruning.draws_inside else 0
        return tuple(f"{_digest(image)} {keeps} {seed}" for image, keeps in zip(request.images, request.keeps, strict=True))

    def keep(self, slot: Slot, pictures: Pictures) -> None:
        """Remember what a request that is over, or was given up between two steps, has left in its slot."""
        prefilled, request = slot.prefilled, slot.request
        ids = np.concatenate([request.input_ids, np.array(slot.tokens[:-1], np.int64)])
        # Idle slots take part in steps, and write a row: it goes behind the others, or takes the last one's place.
        rooms = zip(self._manifest.capacities.rows, prefilled.rows, strict=True)
        length = min(len(ids), min(capacity - 1 - rows for capacity, rows in rooms) + prefilled.rows[0])
        aside = prefilled.following(length - prefilled.rows[0], 0).rows
        settled = self._settled(request, prefilled)
        self._conversations[slot.number] = Conversation(ids[:length], pictures, prefilled, settled, next(self._clock))
        self._decoding.rest(slot.number, NextToken(0, aside, (0,) * len(aside)))

    def place(self, request: Request, pictures: Pictures) -> Place:
        """The free slot that shares most with a prompt, or the one that is needed least.  What was in it is forgotten.

        For a prefix no slot is taken that would lose more than a third of its conversation, but for the one needed least.
        """
        free = self._decoding.free_slots
        for number in set(self._conversations).intersection(free):
            if not self._decoding.rests(number):
                del self._conversations[number]
        least = self._least_needed(free)
        shared = {
            number: rows
            for number, conversation in self._conversations.items()
            if (rows := conversation.shared(request, pictures)) and (number == least or 3 * rows >= 2 * len(conversation.ids))
        }
        if not shared:
            self._conversations.pop(least, None)
            return Place(least, None)
        number = max(shared, key=lambda one: (shared[one], -one))
        return Place(number, (self._conversations.pop(number).prefilled, shared[number]))

    def _settled(self, request: Request, prefilled: Prefilled) -> int:
        """Rows of the prompt that the pictures came with: all of them where the choice among their tokens depends on them."""
        came_with = prefilled.prompt.input_ids
        visual = np.flatnonzero(came_with < 0)
        if not len(visual):
            return 0
        by_words = TEXT in self._manifest.pruning.stage1_needs or any(keeps[-1] < keeps[0] for keeps in request.keeps)
        return len(came_with) if by_words else int(visual[-1]) + 1

    def _least_needed(self, free: Sequence[int]) -> int:
        """Of the free slots that lengthen no step beyond bounds: an empty one, or else the one whose use is longest ago."""
        most = max(_FEW_SLOTS, _SLOTS_PER_REQUEST * (len(self._decoding.active) + 1))
        low = [number for number in free if number < most] or [min(free)]
        return min(low, key=lambda number: (self._used(number), number))

    def _used(self, number: int) -> int:
        conversation = self._conversations.get(number)
        return -1 if conversation is None else conversation.used


def _digest(image: PreparedImage) -> str:
    """Of all that a picture is: names, types, shapes and every byte."""
    layout = image.crops, image.crop_rows, image.crop_columns, image.grid_span
    arrays = {"order": image.token_order, "rows": image.rows, "positions": image.positions}
    return content_key(arrays, *layout, image.encoder_key)
