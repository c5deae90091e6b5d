"""Ask a bundle about a picture.

vlm = Pipeline("llava-1.5-7b-b64")
print(vlm.generate("What is on the table?", images="cat.jpg").text)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from sts_export.bundle import open_bundle
from sts_export.errors import BackendError, PromptError, RequestError
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.runtime.backend import LowerInputs
from sts_export.runtime.images import load_image
from sts_export.runtime.processor import open_image_processor
from sts_export.runtime.prompt import ChatTokenizer, Messages
from sts_export.runtime.result import FinishReason, GenerationResult, KvCacheBytes, Timings, VisualTokens
from sts_export.runtime.sampling import Sampler, SamplingConfig
from sts_export.runtime.stopping import TextStream

ImageSource = str | Path | bytes | Image


@dataclass(frozen=True)
class Request:
    """A request that was checked and fits.

    input_ids: [1, sequence] int64, with K times VISUAL_ROW for the image; pixel_values: [1, 3, H, W] float32 or None.
    """

    input_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32] | None
    max_new_tokens: int
    sampling: SamplingConfig
    stop: tuple[str, ...]
    ignore_eos: bool
    started: float
    preprocess_ms: float


@dataclass(frozen=True)
class Prefilled:
    """State after the prompt: logits of its last token, rows used in either cache, what was kept, and timings."""

    logits: NDArray[np.float32]
    lower_rows: int
    upper_rows: int
    kept_stage1: list[list[int]]
    kept_stage2: list[int]
    vision_ms: float
    select_ms: float
    lower_ms: float
    upper_ms: float


class TokenStream:
    """Iterates over pieces of text as they are generated; ``result`` is there once it is exhausted."""

    def __init__(self, pieces: Generator[str, None, GenerationResult]) -> None:
        self._pieces = pieces
        self._result: GenerationResult | None = None

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise StopIteration from None

    def close(self) -> None:
        """Stop generating; the request's buffers are given back."""
        self._pieces.close()

    @property
    def result(self) -> GenerationResult:
        if self._result is None:
            raise RequestError("the stream has no result yet; read it to its end first")
        return self._result


class Pipeline:
    """An exported bundle, ready to generate.

    Args:
        bundle: folder written by ``sts-export``.
        threads: CPU threads of the engine; None lets it choose.

    Raises:
        BundleError: not a valid bundle.
        BackendError: the engine cannot run it.
    """

    def __init__(self, bundle: str | Path, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise RequestError(f"threads must be at least 1, not {threads}")
        from sts_export.runtime.onnxruntime_backend import OnnxRuntimeBackend

        self.bundle = open_bundle(bundle)
        self.manifest = self.bundle.manifest
        self.tokenizer = ChatTokenizer.open(self.bundle.folder, self.manifest.model.default_chat_template)
        self._processor = open_image_processor(self.bundle.folder)
        self._backend = OnnxRuntimeBackend(self.bundle, threads)
        # Buffers of finished requests, to be used again: clearing and faulting in fresh ones costs time.
        self._free_caches: list[Any] = []

    def generate(
        self, prompt: str | Messages, images: ImageSource | Sequence[ImageSource] = (), **settings: Any
    ) -> GenerationResult:
        """Answer one prompt; settings as for :meth:`stream`."""
        stream = self.stream(prompt, images, **settings)
        for _ in stream:
            pass
        return stream.result

    def stream(
        self,
        prompt: str | Messages,
        images: ImageSource | Sequence[ImageSource] = (),
        *,
        max_new_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> TokenStream:
        """Answer one prompt, text piece by piece.  The request is checked before this returns.

        Args:
            prompt: text, or chat messages.
            images: none or one: path, bytes or PIL image.
            max_new_tokens: at most the bundle's capacity; None takes what fits.
            sampling: None is greedy.
            stop: strings that end the answer and are not part of it.
            ignore_eos: keep generating up to max_new_tokens.

        Raises:
            ImageError, PromptError, RequestError: the request is wrong or does not fit; nothing was run.
        """
        sources = [images] if isinstance(images, (str, Path, bytes, Image)) else list(images)
        request = self._prepare(prompt, sources, max_new_tokens, sampling or SamplingConfig(), tuple(stop), ignore_eos)
        TextStream(self.tokenizer, request.stop)  # refuses malformed stop strings now, not at the first token
        return TokenStream(self._run(request))

    def score(self, prompt: str | Messages, image: ImageSource, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [steps, vocab] before each of ``token_ids``, which are taken as the answer whatever the logits say."""
        request = self._prepare(prompt, [image], len(token_ids), SamplingConfig(), (), True)
        caches = self._take_caches()
        try:
            state = self._prefill(request, caches)
            later = [self._decode(caches, state, step, token) for step, token in enumerate(token_ids[:-1])]
            return np.stack([state.logits, *later])
        finally:
            self._free_caches.append(caches)

    def features(self, image: ImageSource) -> dict[str, NDArray[Any]]:
        """What the vision encoder makes of a picture: visual_features [1, N, width], and cls_attention [1, N] if exported."""
        encoded: dict[str, NDArray[Any]] = self._backend.encode(self._processor.pixel_values(load_image(image)))
        return encoded

    def seen(self, image: ImageSource) -> Image:
        """The picture the vision tower gets: resized and cropped by the checkpoint's processor."""
        return self._processor.picture(load_image(image))

    def prepare_ids(self, prompt: str | Messages, num_images: int) -> NDArray[np.int64]:
        """Prompt token ids [sequence], with K times VISUAL_ROW per image.

        Raises:
            PromptError: as for :meth:`stream`.
        """
        text = self.tokenizer.render(prompt, num_images)
        counts = [self.manifest.pruning.keep_stage1] * num_images
        ids = self.tokenizer.encode(text, self.manifest.model.image_token_id, counts)
        return np.where(ids == self.manifest.model.image_token_id, VISUAL_ROW, ids)

    def _prepare(
        self,
        prompt: str | Messages,
        images: list[ImageSource],
        max_new_tokens: int | None,
        sampling: SamplingConfig,
        stop: tuple[str, ...],
        ignore_eos: bool,
    ) -> Request:
        started = time.perf_counter()
        if len(images) > 1:
            raise PromptError(
                f"{len(images)} images were given; this bundle takes one per prompt, so ask about them one by one"
            )
        ids = self.prepare_ids(prompt, len(images))
        new_tokens = self._fit(len(ids), len(images), max_new_tokens)
        pixels = self._processor.pixel_values(load_image(images[0])) if images else None
        return Request(ids[None], pixels, new_tokens, sampling, stop, ignore_eos, started, _since(started))

    def _fit(self, sequence: int, num_images: int, max_new_tokens: int | None) -> int:
        """Tokens that may be generated.  An engine writes past a full cache silently or not at all, so this is the guard."""
        capacities, pruning = self.manifest.capacities, self.manifest.pruning
        dropped = num_images * (pruning.keep_stage1 - pruning.keep_stage2)
        # The last token generated is never written to a cache.
        room = min(capacities.lower - sequence, capacities.upper - (sequence - dropped)) + 1
        text = sequence - num_images * pruning.keep_stage1
        if room < 1:
            raise PromptError(
                f"the prompt is too long: {text} text tokens, this bundle holds {capacities.prompt_tokens} "
                f"with {capacities.new_tokens} new ones; shorten it or export with a larger --max-prompt-tokens"
            )
        if max_new_tokens is None:
            return min(room, capacities.new_tokens)
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        if max_new_tokens > room:
            raise RequestError(
                f"{max_new_tokens} new tokens do not fit: after {text} text tokens there is room for {room}; "
                "ask for fewer or export with a larger --max-new-tokens"
            )
        return max_new_tokens

    def _run(self, request: Request) -> Generator[str, None, GenerationResult]:
        caches = self._take_caches()
        try:
            result = yield from self._generate(request, caches)
        except BackendError:
            raise  # the buffers may hold NaN, which would reach the next request through its masked columns
        except GeneratorExit:
            self._free_caches.append(caches)
            raise
        self._free_caches.append(caches)
        return result

    def _take_caches(self) -> Any:
        return self._free_caches.pop() if self._free_caches else self._backend.new_caches()

    def _generate(self, request: Request, caches: Any) -> Generator[str, None, GenerationResult]:
        sampler, text = Sampler(request.sampling), TextStream(self.tokenizer, request.stop)
        state = self._prefill(request, caches)
        tokens = [sampler.sample(state.logits)]
        first_token_ms = _since(request.started)
        decode_ms = 0.0  # without the time that the consumer of the stream takes
        while True:
            if tokens[-1] in self.tokenizer.eos_token_ids and not request.ignore_eos:
                reason: FinishReason = "stop"
                break
            if piece := text.push(tokens[-1]):
                yield piece
            if text.stopped or len(tokens) == request.max_new_tokens:
                reason = "stop" if text.stopped else "length"
                break
            step_started = time.perf_counter()
            tokens.append(sampler.sample(self._decode(caches, state, len(tokens) - 1, tokens[-1])))
            decode_ms += _since(step_started)
        if piece := text.finish():
            yield piece
        return self._result(request, state, caches, text, tokens, reason, first_token_ms, decode_ms)

    def _prefill(self, request: Request, caches: Any) -> Prefilled:
        marks = [time.perf_counter()]
        features = None if request.pixel_values is None else self._backend.encode(request.pixel_values)
        marks.append(time.perf_counter())
        kept_index, embeds = (np.empty((0, 0), np.int64), None) if features is None else self._backend.select(features)
        marks.append(time.perf_counter())
        sequence = request.input_ids.shape[1]
        positions = np.arange(sequence, dtype=np.int64)[None]
        lower = self._backend.lower(caches, LowerInputs(request.input_ids, positions, 0, embeds))
        marks.append(time.perf_counter())
        survivors = lower.kept_rows.shape[1]
        keep_positions = self.manifest.pruning.positions == "keep"
        upper_positions = lower.kept_position_ids if keep_positions else positions[:, :survivors]
        logits = self._backend.upper(caches, lower, upper_positions, 0)
        marks.append(time.perf_counter())
        vision, select, low, up = ((after - before) * 1e3 for before, after in itertools.pairwise(marks))
        kept1 = [row.tolist() for row in kept_index]
        kept2 = _original_positions(request.input_ids[0], lower.kept_rows[0], kept_index)
        return Prefilled(logits, sequence, survivors, kept1, kept2, vision, select, low, up)

    def _decode(self, caches: Any, state: Prefilled, step: int, token: int) -> NDArray[np.float32]:
        """Logits after ``token``, the ``step``-th generated one."""
        lower_row, upper_row = state.lower_rows + step, state.upper_rows + step
        ids, position = np.array([[token]], np.int64), np.array([[lower_row]], np.int64)
        lower = self._backend.lower(caches, LowerInputs(ids, position, lower_row))
        upper_position = position if self.manifest.pruning.positions == "keep" else np.array([[upper_row]], np.int64)
        return self._backend.upper(caches, lower, upper_position, upper_row)

    def _result(
        self,
        request: Request,
        state: Prefilled,
        caches: Any,
        text: TextStream,
        tokens: list[int],
        reason: FinishReason,
        first_token_ms: float,
        decode_ms: float,
    ) -> GenerationResult:
        images = len(state.kept_stage1)
        return GenerationResult(
            text=text.text,
            token_ids=tokens,
            finish_reason="stop" if text.stopped else reason,
            prompt_tokens=state.lower_rows,
            visual_tokens=VisualTokens(
                total=images * self.manifest.pruning.num_visual_tokens,
                stage1=sum(map(len, state.kept_stage1)),
                stage2=len(state.kept_stage2),
            ),
            kept_stage1=state.kept_stage1,
            kept_stage2=state.kept_stage2,
            timings_ms=Timings(
                preprocess=request.preprocess_ms,
                vision=state.vision_ms,
                select=state.select_ms,
                prefill_lower=state.lower_ms,
                prefill_upper=state.upper_ms,
                first_token=first_token_ms,
                decode_per_token=decode_ms / (len(tokens) - 1) if len(tokens) > 1 else None,
            ),
            kv_cache_bytes=KvCacheBytes(caches.lower_bytes, caches.upper_bytes),
        )


def _original_positions(input_ids: NDArray[np.int64], kept_rows: NDArray[np.int64], kept_index: NDArray[np.int64]) -> list[int]:
    """Surviving prompt rows -> positions in the token grid of the unpruned image."""
    visual_rows = np.flatnonzero(input_ids == VISUAL_ROW)
    surviving = np.isin(visual_rows, kept_rows)
    positions: list[int] = kept_index.reshape(-1)[surviving].tolist()
    return positions


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
