"""What is computed for one request before its first token, and for all slots in every later step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.protocol import Backend, KvCaches, Tensor
from sts_export.bundle.manifest import Manifest
from sts_export.generation.pictures.cache import PictureCache
from sts_export.generation.pictures.stage1 import Stage1
from sts_export.generation.result import KvCacheBytes
from sts_export.generation.timing import PictureTimes, milliseconds_since
from sts_export.requests.feeds import PartFeeds, decode_feeds, passed_on, prefill_feeds, text_feeds
from sts_export.requests.request import Request
from sts_export.requests.rows import PromptRows, original_positions, place_images


@dataclass(frozen=True)
class NextToken:
    """What a slot is fed in one step.

    Args:
        token: the newest one.
        rows: cache row that it takes in each part.
        positions: its rotary position in each part.
    """

    token: int
    rows: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Prefilled:
    """A request after its prompt.

    Args:
        prompt: rows of the first part; where rows were found in the caches, of the prompt that came with the pictures.
        kept: tokens of each image that stage 1 kept, in the order of the prompt; those below 0 are CLS tokens.
        merged_into: token that each token of each image was merged into, -1 for none; None where stage 1 merges nothing.
        kept_rows: engine-side [1, survivors] of each part but the last: rows of its prefill that live on.
        rows: cache rows that the prompt takes in each part.
        next_positions: rotary position of the first generated token in each part.
        times: of its pictures before the first part.
        part_ms: time of each part.
        cached: rows of the prompt, in the first part, that were found in the caches.
    """

    prompt: PromptRows
    kept: list[NDArray[np.int64]]
    merged_into: list[NDArray[np.int64]] | None
    kept_rows: list[Tensor]
    rows: tuple[int, ...]
    next_positions: tuple[int, ...]
    times: PictureTimes
    part_ms: list[float]
    cached: int = 0

    def following(self, step: int, token: int) -> NextToken:
        """``token``, the ``step``-th generated one, counted from 0; below 0 for text of the prompt behind its pictures."""
        rows = tuple(row + step for row in self.rows)
        return NextToken(token, rows, tuple(position + step for position in self.next_positions))


class GraphRunner:
    """The graphs of a bundle under one backend.

    Args:
        backend: runs the graphs.
        manifest: of the bundle.
        pictures: what is known of earlier ones; None: every picture goes through all graphs.
    """

    def __init__(self, backend: Backend, manifest: Manifest, pictures: PictureCache | None = None) -> None:
        self._backend, self._stage1 = backend, Stage1(manifest, pictures)
        self._contracts, self._parts = manifest.graphs, manifest.pruning.parts
        self._mrope = bool(manifest.model.decoder.mrope_section)
        self._unpruned = manifest.model.unpruned_positions(manifest.pruning)
        self._keep_positions = manifest.pruning.survivors_keep_positions
        self._draws = manifest.pruning.draws_inside

    @cached_property
    def idle(self) -> NextToken:
        """For a slot without a request: its first row, which the next request's prompt overwrites."""
        nothing = (0,) * len(self._parts)
        return NextToken(0, nothing, nothing)

    def prefill(self, request: Request, caches: KvCaches, slot: int) -> tuple[Prefilled, NDArray[np.float32]]:
        """Images through stage 1, the prompt through all parts and into one slot of the caches; logits [vocab] after it."""
        chosen = self._stage1.choose(self._backend, request)
        kept = chosen.kept
        prompt = place_images(request.input_ids, request.images, kept, mrope=self._mrope, unpruned=self._unpruned)
        counts = self._visual_rows(request)
        given = prefill_feeds(
            self._parts,
            prompt,
            counts,
            whole=counts[-1] == sum(image.num_tokens for image in request.images),
            survivors_keep_positions=self._keep_positions,
            seed=request.seed if self._draws else None,
        )
        logits, kept_rows, part_ms = self._through_parts(chosen.visual, given.feeds, caches, slot)
        rows, following = given.rows, given.next_positions
        return Prefilled(prompt, kept, chosen.merged_into, kept_rows, rows, following, chosen.times, part_ms), logits

    def resume(
        self, request: Request, earlier: Prefilled, cached: int, caches: KvCaches, slot: int
    ) -> tuple[Prefilled, NDArray[np.float32]]:
        """The rest of a prompt, behind rows that an earlier request has left in its slot; logits [vocab] after it.

        Args:
            earlier: that request, with the same pictures.
            cached: rows of the prompt that are there, all of its pictures among them; at least one is left to run.
        """
        ids = request.input_ids[cached:]
        first = earlier.following(cached - earlier.rows[0], int(ids[0]))
        feeds = text_feeds(
            self._parts,
            ids[None],
            [np.array([row]) for row in first.rows],
            [np.array([position]) for position in first.positions],
            mrope=self._mrope,
            survivors_keep_positions=self._keep_positions,
            draws=self._draws,
        )
        logits, _, part_ms = self._through_parts({}, feeds, caches, slot)
        end = earlier.following(len(request.input_ids) - earlier.rows[0], 0)
        resumed = replace(
            earlier,
            rows=end.rows,
            next_positions=end.positions,
            times=PictureTimes(),
            part_ms=part_ms,
            cached=cached,
        )
        return resumed, logits

    def _through_parts(
        self, outputs: dict[str, Tensor], given: PartFeeds, caches: KvCaches, slot: int
    ) -> tuple[NDArray[np.float32], list[Tensor], list[float]]:
        """Rows of one request through all parts: logits [vocab] after the last, the kept rows, and the time of each part."""
        kept_rows, part_ms = [], []
        for part in self._parts:
            started = time.perf_counter()
            feeds = {**passed_on(self._contracts[part.name], outputs), **given[part.name]}
            wanted = ("logits",) if part.is_last else ()
            outputs = dict(self._backend.run(part.name, feeds, caches=caches, slot=slot, fetch=wanted))
            part_ms.append(milliseconds_since(started))
            if not part.is_last:
                kept_rows.append(outputs["kept_rows"])
        logits: NDArray[np.float32] = outputs["logits"][0]
        return logits, kept_rows, part_ms

    def _visual_rows(self, request: Request) -> list[int]:
        """Of all images in each part."""
        return [sum(keeps) for keeps in zip(*request.keeps, strict=True)] or [0] * len(self._parts)

    def average_visual_tokens(self, request: Request) -> float:
        """Of all images in each layer."""
        counts = [len(part.layers) * count for part, count in zip(self._parts, self._visual_rows(request), strict=True)]
        return sum(counts) / self._parts[-1].end

    def step_slots(self, needed: int, caches: KvCaches) -> int:
        """How many of the first slots a step runs that needs so many of them."""
        return self._backend.step_slots(needed, caches.slots)

    def decode(self, caches: KvCaches, tokens: Sequence[NextToken]) -> NDArray[np.float32]:
        """Logits [slots, vocab] after one token of each of the first slots, of as many as :meth:`step_slots` says."""
        by_part = [zip(*field, strict=True) for field in ([one.rows for one in tokens], [one.positions for one in tokens])]
        rows, positions = ([np.array(part, np.int64) for part in parts] for parts in by_part)
        feeds = decode_feeds(
            self._parts,
            np.array([one.token for one in tokens], np.int64),
            rows,
            positions,
            mrope=self._mrope,
            survivors_keep_positions=self._keep_positions,
            draws=self._draws,
        )
        return self._backend.decode(caches, feeds)

    def kept_after_stage2(self, request: Request, prefilled: Prefilled) -> list[int]:
        """Which visual tokens of all images survived to the last part, ascending."""
        rows = np.arange(len(prefilled.prompt.input_ids))
        for tensor in prefilled.kept_rows:
            rows = rows[self._backend.fetch(tensor)[0]]
        return original_positions(prefilled.prompt.input_ids, rows, request.images, prefilled.kept)

    def cache_bytes(self, caches: KvCaches) -> KvCacheBytes:
        """Of one slot: the first part, and all others."""
        first, *others = (caches.bytes_of(part.name) // caches.slots for part in self._parts)
        return KvCacheBytes(first, sum(others))
