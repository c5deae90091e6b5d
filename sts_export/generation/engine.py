"""Prefill and decode of a batch of requests: images through stage 1, the prompt through both halves, then token by token."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sts_export.backends.protocol import Backend, KvCaches, LowerInputs, LowerOutputs, Tensor
from sts_export.bundle.manifest import Manifest
from sts_export.generation.logits_processors import LogitsProcessor
from sts_export.generation.result import FinishReason, GenerationResult, KvCacheBytes, Timings, VisualTokens
from sts_export.generation.sampling import Sampler
from sts_export.generation.stopping import TextStream
from sts_export.requests.prompt import ChatTokenizer
from sts_export.requests.request import Request
from sts_export.requests.rows import PromptRows, original_positions, place_images, unpruned_ids


@dataclass(frozen=True)
class Prefilled:
    """A batch after its prompts.

    Args:
        logits: [batch, vocab] of the last prompt tokens.
        prompts: rows of each request, and what stage 1 kept of each of its images.
        lower_rows, upper_rows: [batch] int64; rows that each request's prompt takes in the caches.
        lower_next, upper_next: [batch] int64; rotary positions of the first generated tokens in either part.
        lower: outputs of LLM-lower.
    """

    logits: NDArray[np.float32]
    prompts: list[PromptRows]
    kept: list[list[NDArray[np.int64]]]
    lower_rows: NDArray[np.int64]
    upper_rows: NDArray[np.int64]
    lower_next: NDArray[np.int64]
    upper_next: NDArray[np.int64]
    lower: LowerOutputs
    vision_ms: list[float]
    select_ms: list[float]
    lower_ms: float
    upper_ms: float


@dataclass
class Answer:
    """One request's answer as it grows."""

    request: Request
    sampler: Sampler
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    first_token_ms: float = 0.0
    decode_ms: float = 0.0


class Engine:
    """The graphs of a bundle under one backend.

    Args:
        backend: runs the graphs.
        manifest: of the bundle.
        tokenizer: for the text of answers and the tokens that end them.
    """

    def __init__(self, backend: Backend, manifest: Manifest, tokenizer: ChatTokenizer) -> None:
        self._backend = backend
        self._tokenizer = tokenizer
        self._image_token, self._vocabulary = manifest.model.image_token_id, manifest.model.decoder.vocab_size
        self._mrope = bool(manifest.model.decoder.mrope_section)
        self._unpruned = manifest.model.unpruned_positions(manifest.pruning)
        self._keep_positions = manifest.pruning.survivors_keep_positions
        capacities = manifest.capacities
        self._limits = np.array([*capacities.rows, capacities.positions])

    def run(self, requests: Sequence[Request], caches: KvCaches) -> Generator[tuple[int, str], None, list[GenerationResult]]:
        """Answer requests with equal numbers of visual rows together; yields (request, piece of text) as they come."""
        answers = [Answer(request, self._sampler(request), self._stream(request)) for request in requests]
        state = self.prefill(requests, caches)
        for answer, logits in zip(answers, state.logits, strict=True):
            answer.tokens.append(answer.sampler.sample(logits))
            answer.first_token_ms = milliseconds_since(answer.request.started)
        for step in range(max(request.max_new_tokens for request in requests)):
            for index, answer in enumerate(answers):
                if answer.reason is None and (piece := self._advance(answer)):
                    yield index, piece
            active = [answer for answer in answers if answer.reason is None]
            if not active:
                break
            started = time.perf_counter()
            logits = self.decode(caches, state, step, [answer.tokens[-1] for answer in answers])
            for answer, row in zip(answers, logits, strict=True):
                if answer.reason is None:
                    answer.tokens.append(answer.sampler.sample(row))
            passed = milliseconds_since(started)  # without the time that the consumer of the pieces takes
            for answer in active:
                answer.decode_ms += passed
        return [self._result(answer, state, index, caches) for index, answer in enumerate(answers)]

    def _sampler(self, request: Request) -> Sampler:
        if request.logits.changes_nothing:
            return Sampler(request.sampling)
        prompt = unpruned_ids(request.input_ids, request.images, request.rows, self._image_token)
        ends = () if request.ignore_eos else self._tokenizer.eos_token_ids
        return Sampler(request.sampling, LogitsProcessor(request.logits, prompt, self._vocabulary, ends))

    def _stream(self, request: Request) -> TextStream:
        return TextStream(self._tokenizer, request.stop)

    def _advance(self, answer: Answer) -> str:
        """Take the newest token into the text; sets ``reason`` where the answer ends.  Returns new text, if any."""
        request, token = answer.request, answer.tokens[-1]
        if token in self._tokenizer.eos_token_ids and not request.ignore_eos:
            answer.reason = "stop"
            return answer.text.finish()
        piece = answer.text.push(token)
        if answer.text.stopped or len(answer.tokens) == request.max_new_tokens:
            piece += answer.text.finish()  # in which a stop string may be completed, too
            answer.reason = "stop" if answer.text.stopped else "length"
        return piece

    # The two phases

    def prefill(self, requests: Sequence[Request], caches: KvCaches) -> Prefilled:
        """Run the prompts."""
        kept: list[list[NDArray[np.int64]]] = []
        embeds: list[list[Tensor]] = []
        vision_ms, select_ms = [], []
        for request in requests:
            tokens, rows, vision, select = self._stage1(request)
            kept.append(tokens)
            embeds.append(rows)
            vision_ms.append(vision)
            select_ms.append(select)
        prompts = [
            place_images(request.input_ids, request.images, tokens, mrope=self._mrope, unpruned=self._unpruned)
            for request, tokens in zip(requests, kept, strict=True)
        ]
        lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        visual, visual_keep = requests[0].visual, requests[0].visual_keep
        begin = np.zeros(len(requests), np.int64)
        started = time.perf_counter()
        lower = self._backend.lower(
            caches,
            LowerInputs(
                _padded([prompt.input_ids for prompt in prompts]),
                _padded([np.ones(length, np.int64) for length in lengths]),
                _padded([prompt.position_ids for prompt in prompts]),
                begin,
                embeds if visual else (),
                visual_keep if visual else 1,
            ),
        )
        lower_ms, started = milliseconds_since(started), time.perf_counter()
        upper_rows = lengths - visual + visual_keep
        lower_next = np.array([prompt.next_position for prompt in prompts])
        upper_positions, upper_next = self._upper_positions(requests, prompts, upper_rows)
        logits = self._backend.upper(caches, lower, upper_positions, begin)
        upper_ms = milliseconds_since(started)
        return Prefilled(
            logits,
            prompts,
            kept,
            lengths,
            upper_rows,
            lower_next,
            upper_next,
            lower,
            vision_ms,
            select_ms,
            lower_ms,
            upper_ms,
        )

    def _stage1(self, request: Request) -> tuple[list[NDArray[np.int64]], list[Tensor], float, float]:
        """Kept tokens and embeddings of each image, and the time for features and for the choice."""
        kept, embeds = [], []
        vision = select = 0.0
        for image, (keep, _) in zip(request.images, request.keeps, strict=True):
            started = time.perf_counter()
            features = self._backend.encode(image.encoder_inputs)
            vision, started = vision + milliseconds_since(started), time.perf_counter()
            tokens, rows = self._backend.select(features, image.token_order, image.quota(keep))
            select += milliseconds_since(started)
            kept.append(tokens)
            embeds.append(rows)
        return kept, embeds, vision, select

    def _upper_positions(
        self, requests: Sequence[Request], prompts: Sequence[PromptRows], upper_rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """Positions of the upper part (None: those that the lower part says survived), and of the first new tokens."""
        lower_next = np.array([prompt.next_position for prompt in prompts])
        if self._keep_positions:
            return None, lower_next
        rows, following = [], []
        for request, prompt, count in zip(requests, prompts, upper_rows, strict=True):
            # A prompt of which nothing was dropped is the unpruned model's, with the unpruned model's positions.
            whole = request.visual_keep == sum(image.num_tokens for image in request.images)
            contiguous = np.broadcast_to(np.arange(count), (*prompt.position_ids.shape[:-1], count))
            rows.append(prompt.position_ids if whole else contiguous)
            following.append(prompt.next_position if whole else count)
        return _padded(rows), np.array(following)

    def decode(self, caches: KvCaches, state: Prefilled, step: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [batch, vocab] after ``tokens``, the ``step``-th generated ones.

        A request that has ended goes on with its last token; once its buffers are full it writes their last row again.
        """
        ids = np.array(tokens, np.int64)[:, None]
        limit = self._limits - 1
        lower_index = np.minimum(state.lower_rows + step, limit[0])
        upper_index = np.minimum(state.upper_rows + step, limit[1])
        lower_position = self._as_rows(np.minimum(state.lower_next + step, limit[2]))
        upper_position = self._as_rows(np.minimum(state.upper_next + step, limit[2])) if not self._keep_positions else None
        inputs = LowerInputs(ids, np.ones_like(ids), lower_position, lower_index)
        return self._backend.decode(caches, inputs, upper_position, upper_index)

    def _as_rows(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """[batch] -> [batch, 1] or [batch, 3, 1]."""
        return np.repeat(position[:, None, None], 3, axis=1) if self._mrope else position[:, None]

    def _result(self, answer: Answer, state: Prefilled, index: int, caches: KvCaches) -> GenerationResult:
        request, kept = answer.request, state.kept[index]
        kept_rows = self._backend.fetch(state.lower.kept_rows)[index]
        kept2 = original_positions(state.prompts[index].input_ids, kept_rows, request.images, kept)
        decoded = len(answer.tokens) - 1
        assert answer.reason is not None
        batch = len(state.prompts)
        return GenerationResult(
            text=answer.text.text,
            token_ids=answer.tokens,
            finish_reason=answer.reason,
            prompt_tokens=int(state.lower_rows[index]),
            visual_tokens=VisualTokens(
                total=sum(image.num_tokens for image in request.images), stage1=sum(map(len, kept)), stage2=len(kept2)
            ),
            newline_tokens=sum(image.num_newlines for image in request.images),
            kept_stage1=[tokens.tolist() for tokens in kept],
            kept_stage2=kept2,
            timings_ms=Timings(
                preprocess=request.preprocess_ms,
                vision=state.vision_ms[index],
                select=state.select_ms[index],
                prefill_lower=state.lower_ms,
                prefill_upper=state.upper_ms,
                first_token=answer.first_token_ms,
                decode_per_token=answer.decode_ms / decoded if decoded else None,
            ),
            kv_cache_bytes=KvCacheBytes(caches.lower_bytes // batch, caches.upper_bytes // batch),
        )


def _padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Arrays [..., length] of several lengths -> [batch, ..., longest], zeros on the right."""
    longest = max(row.shape[-1] for row in rows)
    padded = np.zeros((len(rows), *rows[0].shape[:-1], longest), np.int64)
    for index, row in enumerate(rows):
        padded[index, ..., : row.shape[-1]] = row
    return padded


def milliseconds_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
