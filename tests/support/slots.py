"""Requests in slots, straight on a backend: what a pipeline does at the least, greedily and without end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.bundle.manifest import Bundle
from sts_export.requests.feeds import decode_feeds, passed_on, prefill_feeds
from sts_export.requests.preprocessor import Inputs, Preprocessor
from sts_export.requests.rows import place_images


@dataclass
class Running:
    """One request.

    Args:
        rows: next cache row of each part; positions: next rotary position.
        kept: tokens of each image that stage 1 kept; kept_rows: the engine's rows that stage 2 kept.
    """

    rows: list[int]
    positions: list[int]
    kept: list[list[int]]
    kept_rows: Any
    tokens: list[int] = field(default_factory=list)


class Slots:
    """A backend's slots, and the requests in them."""

    def __init__(self, backend: Any, bundle: Bundle, slots: int) -> None:
        self.backend, self.manifest = backend, bundle.manifest
        self.caches = backend.new_caches(slots)
        self.running: dict[int, Running] = {}
        self._parts = self.manifest.pruning.parts
        self._mrope = bool(self.manifest.model.decoder.mrope_section)
        self._keep = self.manifest.pruning.survivors_keep_positions
        self._preprocessor = Preprocessor.open(bundle.folder, self.manifest.model, self.manifest.pruning)

    def inputs(self, prompt: Any, images: Sequence[Any] = ()) -> Inputs:
        return self._preprocessor.prepare(prompt, list(images))

    def add(self, slot: int, inputs: Inputs) -> Running:
        """The prompt, into a slot; the first token."""
        kept, embeds = [], []
        for image, (keep1, _) in zip(inputs.images, inputs.keeps, strict=True):
            features = self.backend.run("vision_encoder", image.encoder_inputs)
            own = {"token_order": image.token_order, "quota": image.quota(keep1)}
            chosen = self.backend.run("selector", {**features, **own}, fetch=("kept_index",))
            kept.append(chosen["kept_index"][:keep1])
            embeds.append(self.backend.rows(chosen["visual_embeds"], keep1))
        unpruned = self.manifest.model.unpruned_positions(self.manifest.pruning)
        prompt = place_images(inputs.input_ids, inputs.images, kept, mrope=self._mrope, unpruned=unpruned)
        visual = [sum(keeps[part] for keeps in inputs.keeps) for part in range(2)]
        whole = visual[1] == sum(image.num_tokens for image in inputs.images)
        made = prefill_feeds(self._parts, prompt, visual, whole=whole, survivors_keep_positions=self._keep)
        outputs: dict[str, Any] = {"visual_embeds": self.backend.joined(embeds)} if embeds else {}
        kept_rows: Any = None
        for part in self._parts:
            given = {**passed_on(self.manifest.graphs[part.name], outputs), **made.feeds[part.name]}
            outputs = dict(self.backend.run(part.name, given, caches=self.caches, slot=slot, fetch=("logits",)))
            if part.is_first:
                kept_rows = outputs["kept_rows"]
        one = Running(list(made.rows), list(made.next_positions), [tokens.tolist() for tokens in kept], kept_rows)
        one.tokens.append(int(outputs["logits"][0].argmax()))
        self.running[slot] = one
        return one

    def step(self) -> NDArray[np.float32]:
        """A token for every request; slots between them that hold none write their first row."""
        count = max(self.running) + 1
        idle = Running([0] * len(self._parts), [0] * len(self._parts), [], None, [0])
        running = [self.running.get(slot, idle) for slot in range(count)]
        feeds = decode_feeds(
            self._parts,
            np.array([one.tokens[-1] for one in running]),
            [np.array([one.rows[part] for one in running]) for part in range(len(self._parts))],
            [np.array([one.positions[part] for one in running]) for part in range(len(self._parts))],
            mrope=self._mrope,
            survivors_keep_positions=self._keep,
        )
        logits: NDArray[np.float32] = self.backend.decode(self.caches, feeds)
        for slot, one in self.running.items():
            one.tokens.append(int(logits[slot].argmax()))
            one.rows = [row + 1 for row in one.rows]
            one.positions = [position + 1 for position in one.positions]
        return logits

    def answer(self, slot: int, inputs: Inputs, tokens: int) -> Running:
        """One request alone, to its end."""
        self.add(slot, inputs)
        while len(self.running[slot].tokens) < tokens:
            self.step()
        return self.running.pop(slot)
