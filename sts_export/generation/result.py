"""What one generation returns, in the names that ``run --json`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from sts_export.generation.next_token.logprobs import TokenLogprobs

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of all images: before pruning, after stage 1, after stage 2; newlines aside."""

    total: int
    stage1: int
    stage2: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds.  ``first_token`` runs from the request to the first token; ``decode_per_token`` is the mean of the rest.

    ``prefill_lower`` is the first decoder part's, ``prefill_upper`` that of all that follow.
    ``decode_per_token`` is None where only one token was generated.  ``vision_saved`` and ``select_saved`` are what
    features and choices took when they were computed that were found in a feature cache now; 0 without one.  ``vision`` is then
    the search for them, and ``select`` 0 where all choices were found.
    """

    preprocess: float
    vision: float
    select: float
    prefill_lower: float
    prefill_upper: float
    first_token: float
    decode_per_token: float | None
    vision_saved: float = 0.0
    select_saved: float = 0.0


@dataclass(frozen=True)
class KvCacheBytes:
    """Allocated key-value buffers of the first decoder part, and of all that follow."""

    lower: int
    upper: int


@dataclass(frozen=True)
class GenerationResult:
    """One finished generation.

    Args:
        text: the answer, without special tokens, cut before the first stop string.
        token_ids: every generated token, the end token included if there was one.
        finish_reason: ``stop`` at an end token, a stop string or the end of a grammar, ``length`` at the token limit, which may
            cut what a grammar asks for.
        prompt_tokens: length of the prompt the decoder saw, with the visual tokens that stage 1 kept.
        visual_tokens: counts before and after each stage, newlines aside and CLS tokens included.
        average_visual_tokens: that a decoder layer saw in the prompt, newlines aside.
        budget: that these follow from, as the request or else the export asked for it; None for counts.
        newline_tokens: learned newline rows (LLaVA-NeXT) in the prompt; never pruned.
        kept_stage1: for every image, the positions that stage 1 kept among its visual tokens, ascending.
        kept_stage2: positions that survived stage 2 among the visual tokens of all images (those of the second image follow
            those of the first), ascending.
        timings_ms: where the time went.  Among several requests a token takes as long as the step that makes one for each of
            them, and the first token waits for the prompts before its own.
        kv_cache_bytes: memory of this request's key-value buffers.
        backend: the engine that ran it, one of ``sts_export.backends.choice.BACKENDS``.
        cls_tokens: CLS tokens that stage 1 keeps beside those of the picture (VisionZip), which stand in no list of positions.
        merged_into: for every image and every visual token of it the kept token that it was merged into, -1 for none; None
            where nothing is merged.
        cached_tokens: rows of the prompt that an earlier request had left in the caches, so that they were not computed again;
            what is said of pictures is then as that request's.
        operators: file name of the library whose kernels chose the tokens on ``onnxruntime-cuda``; None where the graphs' own
            functions did, and with any other backend.
        logprobs: of every entry of ``token_ids``; None where the request did not ask for them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    visual_tokens: VisualTokens
    average_visual_tokens: float
    budget: str | None
    newline_tokens: int
    kept_stage1: list[list[int]]
    kept_stage2: list[int]
    timings_ms: Timings
    kv_cache_bytes: KvCacheBytes
    cls_tokens: int = 0
    merged_into: list[list[int]] | None = None
    cached_tokens: int = 0
    backend: str = ""
    operators: str | None = None
    logprobs: list[TokenLogprobs] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, under the field names above."""
        fields = asdict(self)
        for one in fields["logprobs"] or ():
            one["top"] = [list(pair) for pair in one["top"]]
        return fields
