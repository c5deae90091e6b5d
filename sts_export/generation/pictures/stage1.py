"""Pictures through the vision encoder and the selector, or what is known of them already."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.protocol import Backend, Tensor
from sts_export.bundle.manifest import Manifest
from sts_export.generation.pictures.cache import Computed, PictureCache
from sts_export.generation.timing import PictureTimes, milliseconds_since
from sts_export.graphs.contracts import GraphContract
from sts_export.media.content import content_key
from sts_export.media.prepared import PreparedImage
from sts_export.requests.feeds import Prompt, passed_on, selector_feeds

ENCODER, SELECTOR = "vision_encoder", "selector"


class Asked(Prompt, Protocol):
    """What is chosen for: a :class:`sts_export.requests.request.Request`, or pictures alone."""

    @property
    def images(self) -> Sequence[PreparedImage]:
        """In the order of the prompt."""

    @property
    def keeps(self) -> Sequence[Sequence[int]]:
        """How many tokens of each are left in every decoder part."""


@dataclass(frozen=True)
class Chosen:
    """What is kept of the pictures of a request.

    Args:
        kept: tokens of each, in the order of the prompt; those below 0 are CLS tokens.
        merged_into: token that each token of each was merged into, -1 for none; None where stage 1 merges nothing.
        visual: what the first decoder part takes of all of them, by name: [1, rows, width] on the engine or on the host.
    """

    kept: list[NDArray[np.int64]]
    merged_into: list[NDArray[np.int64]] | None
    visual: dict[str, Tensor]
    times: PictureTimes


class Stage1:
    """The graphs before the decoder.

    The choice follows from the inputs of both graphs and from nothing else.  A method that reads the prompt has its text among
    them, and one that draws the seed, so that a choice is found for the same ones only.

    Args:
        manifest: of the bundle.
        cache: of earlier pictures; None: every picture goes through both graphs, and features stay with the engine.
    """

    def __init__(self, manifest: Manifest, cache: PictureCache | None = None) -> None:
        self._contracts, self._merges = manifest.graphs, manifest.pruning.merges
        self._first = manifest.graphs[manifest.pruning.parts[0].name]
        self._cache = cache

    def choose(self, backend: Backend, request: Asked) -> Chosen:
        """Raises BackendError: the engine failed."""
        pictures = [
            self._of_picture(backend, image, selector_feeds(self._contracts[SELECTOR], image, keeps[0], request))
            for image, keeps in zip(request.images, request.keeps, strict=True)
        ]
        started = time.perf_counter()
        rows = [passed_on(self._first, outputs) for outputs, _ in pictures]
        visual = {name: _joined(backend, [one[name] for one in rows]) for name in (rows[0] if rows else ())}
        times = reduce(add, (passed for _, passed in pictures), PictureTimes())
        if times.select:  # otherwise everything was found, and nothing is left that takes time
            times += PictureTimes(select=milliseconds_since(started))
        merged = [outputs["merged_into"] for outputs, _ in pictures] if self._merges else None
        return Chosen([outputs["kept_index"] for outputs, _ in pictures], merged, visual, times)

    def _of_picture(
        self, backend: Backend, image: PreparedImage, given: Mapping[str, NDArray[Any]]
    ) -> tuple[Mapping[str, Any], PictureTimes]:
        """Outputs of the selector, with rows of the kept tokens only.

        Args:
            given: what the selector takes beside the features.
        """
        if self._cache is None:
            encoded, encoder_ms = _run(backend, ENCODER, image.encoder_inputs, ())
            wanted = ("kept_index", "merged_into") if self._merges else ("kept_index",)
            outputs, selector_ms = self._select(backend, encoded, given, wanted)
            return outputs, PictureTimes(encoder_ms, selector_ms)
        cache, started = self._cache, time.perf_counter()

        def encode() -> Computed:
            outputs, passed = _run(backend, ENCODER, image.encoder_inputs, _names(self._contracts[ENCODER]))
            return Computed(outputs, PictureTimes(vision=passed))

        def choose() -> Computed:
            features = cache.outputs(ENCODER, image.encoder_key, encode)
            outputs, passed = self._select(backend, features.outputs, given, _names(self._contracts[SELECTOR]))
            return Computed(outputs, features.times + PictureTimes(select=passed))

        key = content_key(given, image.encoder_key)
        hashed = PictureTimes(vision=milliseconds_since(started))
        chosen = cache.outputs(SELECTOR, key, choose)
        return chosen.outputs, hashed + chosen.times

    def _select(
        self, backend: Backend, features: Mapping[str, Any], given: Mapping[str, NDArray[Any]], fetch: Sequence[str]
    ) -> tuple[dict[str, Any], float]:
        """Outputs of the selector, with rows of the kept tokens only, and the milliseconds that it took."""
        started = time.perf_counter()
        contract = self._contracts[SELECTOR]
        outputs, _ = _run(backend, SELECTOR, {**passed_on(contract, features), **given}, fetch)
        count = int(given["quota"].sum())  # what follows in the outputs was chosen beyond a crop's share
        for spec in contract.outputs:
            if spec.shape[0] == "kept":
                whole = outputs[spec.name]
                outputs[spec.name] = whole[:count] if spec.name in fetch else backend.rows(whole, count)
        return outputs, milliseconds_since(started)


def _names(contract: GraphContract) -> tuple[str, ...]:
    return tuple(spec.name for spec in contract.outputs)


def _run(backend: Backend, graph: str, inputs: Mapping[str, Any], fetch: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Outputs by name, and the milliseconds that they took."""
    started = time.perf_counter()
    outputs = dict(backend.run(graph, inputs, fetch=fetch))
    return outputs, milliseconds_since(started)


def _joined(backend: Backend, rows: Sequence[Tensor]) -> Tensor:
    """[rows, width] of every picture, all on the engine or all on the host -> [1, all rows, width]."""
    if not isinstance(rows[0], np.ndarray):
        return backend.joined(rows)
    together = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return together[None]
