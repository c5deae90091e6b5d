"""Requests that share caches: each begins and ends when it likes, and one step makes a token of every one that is there.

decoding = Decoding(graphs, manifest, tokenizer, caches)
slot = decoding.add(request)  # its prompt and its first token
while decoding.active:
    for slot in decoding.step():  # one token each
        print(slot.number, slot.piece, slot.reason)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.protocol import KvCaches
from sts_export.bundle.manifest import Manifest
from sts_export.errors import BackendError, RequestError
from sts_export.generation.graph_runner import GraphRunner, NextToken, Prefilled
from sts_export.generation.logits_processors import LogitsProcessor
from sts_export.generation.result import GenerationResult
from sts_export.generation.sampling import Sampler
from sts_export.generation.slots import Slot
from sts_export.generation.stopping import TextStream
from sts_export.generation.timing import milliseconds_since
from sts_export.requests.prompt import ChatTokenizer
from sts_export.requests.request import Request
from sts_export.requests.rows import unpruned_ids


class Decoding:
    """The slots of some caches.  One thread at a time.

    A slot is free again as soon as its request ends, fails in its own settings or is freed.  Rows that it leaves are of no
    influence on the next one.  Only a slot whose engine failed stays unused: its rows may be NaN, which masks do not stop.

    Errors are kept as copies.  A traceback has frames that hold the slot, and so its memory, until the collector comes.

    Args:
        graphs: of the caches' backend.
        manifest: of the bundle.
        tokenizer: for the text of answers and the tokens that end them.
        caches: nobody else uses them.
        engine: its name and its operators, which results tell.
    """

    def __init__(
        self,
        graphs: GraphRunner,
        manifest: Manifest,
        tokenizer: ChatTokenizer,
        caches: KvCaches,
        engine: tuple[str, str | None] = ("", None),
    ) -> None:
        self._graphs, self._caches, self._tokenizer, self._engine = graphs, caches, tokenizer, engine
        self._image_token, self._vocabulary = manifest.model.image_token_id, manifest.model.decoder.vocab_size
        self._free = set(range(caches.slots))
        self._slots: dict[int, Slot] = {}
        self._resting: dict[int, NextToken] = {}

    @property
    def active(self) -> list[Slot]:
        """Slots whose requests go on."""
        return list(self._slots.values())

    @property
    def slots(self) -> int:
        """All of them."""
        return self._caches.slots

    @property
    def lost(self) -> int:
        """Slots that stay unused because their engine failed."""
        return self._caches.slots - len(self._free) - len(self._slots)

    @property
    def has_room(self) -> bool:
        """Whether a request can be added."""
        return bool(self._free)

    @property
    def free_slots(self) -> list[int]:
        """Numbers of the slots that a request can have, ascending."""
        return sorted(self._free)

    def rest(self, number: int, aside: NextToken) -> None:
        """Leave the rows of a free slot as they are until it is taken, so that a request may go on behind them.

        Args:
            aside: what steps feed the slot while it is idle: a row that nobody needs.
        """
        self._resting[number] = aside

    def rests(self, number: int) -> bool:
        """Whether the rows of a free slot are as they were when it was told to :meth:`rest`."""
        if number in self._resting and not self._caches.holds(number):
            del self._resting[number]
        return number in self._resting

    def add(self, request: Request, number: int | None = None, earlier: tuple[Prefilled, int] | None = None) -> Slot:
        """Run a request's prompt and choose its first token, at once; there has to be room.

        It may be over already, at its first token.

        Args:
            number: the free slot that it gets; None: the lowest, for a step computes all slots up to the highest one in use.
            earlier: of a slot that :meth:`rests`: what its last request left, and the rows that both prompts share.

        Raises:
            BackendError: the engine failed.
            RequestError: the request's settings leave no token to choose.
        """
        number = min(self._free) if number is None else number
        self._resting.pop(number, None)
        sampler, text = self._sampler(request), TextStream(self._tokenizer, request.stop)
        ends = frozenset() if request.ignore_eos else frozenset(self._tokenizer.eos_token_ids)
        self._free.remove(number)
        try:
            if earlier is None:
                prefilled, logits = self._graphs.prefill(request, self._caches, number)
            else:
                prefilled, logits = self._graphs.resume(request, *earlier, self._caches, number)
            slot = Slot(number, request, prefilled, sampler, text, ends)
            slot.sample(logits)
            if request.on_kept is not None:
                request.on_kept(slot.kept_stage1, self._graphs.kept_after_stage2(request, prefilled))
        except RequestError:
            self._free.add(number)
            raise
        self._slots[number] = slot
        slot.take_in()
        self._settle(slot)
        return slot

    def step(self) -> list[Slot]:
        """One token for every active slot.

        Returns:
            Those slots.  One is over that now has a ``reason`` or an ``error``: its logits were no numbers, or its settings
            left no token to choose; the others go on.

        Raises:
            BackendError: the engine failed, and with it all requests.
        """
        slots = self.active
        if not slots:
            return []
        started = time.perf_counter()
        for slot, logits in zip(slots, self._decode(), strict=True):
            try:
                slot.sample(logits)
            except (BackendError, RequestError) as error:
                slot.error = copy(error)
        passed = milliseconds_since(started)  # without the time that the consumer of the pieces takes
        for slot in slots:
            slot.decode_ms += passed
            if slot.error is None:
                slot.take_in()
            self._settle(slot)
        return slots

    def free(self, slot: Slot) -> None:
        """Drop a request, whatever it was at; nothing happens to one that is over."""
        if self._slots.get(slot.number) is slot:
            del self._slots[slot.number]
            self._free.add(slot.number)

    def result(self, slot: Slot) -> GenerationResult:
        """Of a request that has ended.

        Raises:
            BackendError: the engine failed.
        """
        kept = self._graphs.kept_after_stage2(slot.request, slot.prefilled)
        average = self._graphs.average_visual_tokens(slot.request)
        result = slot.result(kept, average, self._graphs.cache_bytes(self._caches))
        name, operators = self._engine
        return replace(result, backend=name, operators=operators)

    def _decode(self) -> list[NDArray[np.float32]]:
        """Logits [vocab] of every active slot."""
        tokens = [self._graphs.idle] * self._graphs.step_slots(max(self._slots) + 1, self._caches)
        for number, aside in list(self._resting.items()):
            if self.rests(number) and number < len(tokens):
                tokens[number] = aside
        for number, slot in self._slots.items():
            tokens[number] = slot.next_token
        try:
            logits = self._graphs.decode(self._caches, tokens)
        except BackendError as error:
            for slot in self._slots.values():
                slot.error = copy(error)
            self._slots.clear()
            raise
        return [logits[number] for number in self._slots]

    def _settle(self, slot: Slot) -> None:
        """Whoever is over leaves its slot."""
        if isinstance(slot.error, BackendError):
            del self._slots[slot.number]
        elif slot.is_over:
            self.free(slot)

    def _sampler(self, request: Request) -> Sampler:
        grammar = None if request.grammar is None else request.grammar.begun()
        if request.logits.changes_nothing:
            return Sampler(request.sampling, grammar=grammar)
        prompt = unpruned_ids(request.input_ids, request.images, request.rows, self._image_token)
        ends = () if request.ignore_eos else self._tokenizer.eos_token_ids
        return Sampler(request.sampling, LogitsProcessor(request.logits, prompt, self._vocabulary, ends), grammar)


def answer_all(decoding: Decoding, requests: Sequence[Request]) -> Generator[tuple[int, str], None, list[GenerationResult]]:
    """Answer requests in their order, as many together as there are slots; yields (request, piece of text) as they come.

    Raises:
        BackendError, RequestError: of the first request that fails; the others are given up.  Of several that fail in one
            step an engine's failure goes first: the caches may hold NaN then, and must not be used again.
    """
    waiting = deque(enumerate(requests))
    running: dict[Slot, int] = {}
    results: dict[int, GenerationResult] = {}
    while waiting or running:
        # Who waits goes first: a slot that is empty is computed all the same.
        if waiting and decoding.has_room:
            index, request = waiting.popleft()
            slot = decoding.add(request)
            running[slot] = index
            moved = [slot]
        else:
            moved = decoding.step()
        failed = [slot.error for slot in moved if slot.error is not None]
        if failed:
            raise copy(next((error for error in failed if isinstance(error, BackendError)), failed[0]))
        for slot in moved:
            index = running[slot]
            if slot.reason is not None:
                results[index] = decoding.result(slot)
                del running[slot]
            if slot.piece:
                yield index, slot.piece
    return [results[index] for index in range(len(requests))]
