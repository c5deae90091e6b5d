"""One request's answer as it grows in its slot."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import StsExportError
from sts_export.generation.graph_runner import NextToken, Prefilled
from sts_export.generation.next_token.logprobs import TokenLogprobs, token_logprobs
from sts_export.generation.result import FinishReason, GenerationResult, KvCacheBytes, Timings, VisualTokens
from sts_export.generation.sampling import Sampler
from sts_export.generation.stopping import TextStream
from sts_export.generation.timing import milliseconds_since
from sts_export.requests.request import Request


@dataclass(eq=False)
class Slot:
    """All that one request is, from its prompt to its end.

    Args:
        number: which slot of the caches it has; another request's once this one has ended.
        prefilled: what its prompt left.
        ends: tokens that end it.
        tokens: generated so far.
        logprobs: of each of them; empty where the request asks for none.
        piece: text that the newest token made certain; empty where it is held back.
        reason: why it ended; None while it goes on.
        error: why it failed; it is then over without a result.
        first_token_ms: from the request to the first token.
        decode_ms: time of the steps since then.
    """

    number: int
    request: Request
    prefilled: Prefilled
    sampler: Sampler
    text: TextStream
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    piece: str = ""
    reason: FinishReason | None = None
    error: StsExportError | None = None
    first_token_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.reason is not None or self.error is not None

    @property
    def kept_stage1(self) -> list[list[int]]:
        """As in a result; known since the prompt was run."""
        return [sorted(tokens[tokens >= 0].tolist()) for tokens in self.prefilled.kept]

    @property
    def next_token(self) -> NextToken:
        """What the next step is fed."""
        return self.prefilled.following(len(self.tokens) - 1, self.tokens[-1])

    def sample(self, logits: NDArray[np.float32]) -> None:
        """Choose the next token.

        Args:
            logits: [vocab]

        Raises:
            BackendError: logits that are no numbers.
            RequestError: the request's settings leave no token to choose.
        """
        token = self.sampler.sample(logits)
        self.tokens.append(token)
        if self.request.logprobs is not None:  # a millisecond for a large vocabulary
            self.logprobs.append(token_logprobs(logits, token, self.request.logprobs))
        if len(self.tokens) == 1:
            self.first_token_ms = milliseconds_since(self.request.started)

    def take_in(self) -> None:
        """Take the newest token into the text: sets ``piece``, and ``reason`` where the answer ends."""
        token = self.tokens[-1]
        if token in self.ends:
            self.reason = "stop"
            self.piece = self.text.finish()
            return
        self.piece = self.text.push(token)
        complete = self.sampler.is_complete
        if self.text.stopped or complete or len(self.tokens) == self.request.max_new_tokens:
            self.piece += self.text.finish()  # in which a stop string may be completed, too
            self.reason = "stop" if self.text.stopped or complete else "length"

    def result(self, kept_stage2: list[int], average: float, kv_cache_bytes: KvCacheBytes) -> GenerationResult:
        """Of a request that has ended."""
        assert self.reason is not None
        request, prefilled = self.request, self.prefilled
        first_ms, *other_ms = prefilled.part_ms
        decoded = len(self.tokens) - 1
        return GenerationResult(
            text=self.text.text,
            token_ids=self.tokens,
            finish_reason=self.reason,
            prompt_tokens=prefilled.rows[0],
            visual_tokens=VisualTokens(
                total=sum(image.num_tokens for image in request.images),
                stage1=sum(map(len, prefilled.kept)),
                stage2=sum(keeps[-1] for keeps in request.keeps),
            ),
            average_visual_tokens=average,
            budget=request.budget,
            newline_tokens=sum(image.num_newlines for image in request.images),
            kept_stage1=self.kept_stage1,
            kept_stage2=kept_stage2,
            timings_ms=Timings(
                preprocess=request.preprocess_ms,
                vision=prefilled.times.vision,
                select=prefilled.times.select,
                prefill_lower=first_ms,
                prefill_upper=sum(other_ms),
                first_token=self.first_token_ms,
                decode_per_token=self.decode_ms / decoded if decoded else None,
                vision_saved=prefilled.times.vision_saved,
                select_saved=prefilled.times.select_saved,
            ),
            kv_cache_bytes=kv_cache_bytes,
            cached_tokens=prefilled.cached,
            cls_tokens=sum(int((tokens < 0).sum()) for tokens in prefilled.kept),
            merged_into=None if prefilled.merged_into is None else [targets.tolist() for targets in prefilled.merged_into],
            logprobs=None if request.logprobs is None else self.logprobs,
        )
