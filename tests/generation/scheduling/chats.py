"""Chats that go on turn by turn, and what each turn has to answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.errors import PromptError, RequestError
from sts_export.generation.result import GenerationResult
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.request import Request, room_for_answer
from tests.support.mixed_requests import WIDE

TURN = 5  # tokens of an answer
MORE = [40, 77, 12, 90, 301]  # what the user says next
Open = Callable[[str], Pipeline]
Folders = Callable[[str], Path]
# Ways of pruning that differ in what the choice depends on.
METHODS: dict[str, dict[str, Any]] = {
    "sts": {"keep": (20, 8)},
    "before": {"method": "divprune", "budget": "12"},
    "none": {"method": "none"},
    "random": {"method": "random", "budget": "12"},
    "by text": {"stage1": "cdpruner", "stage2": "keep-all", "budget": "12"},
}


def asked(vlm: Pipeline, prompt: Any = "What is on the table?", images: Any = WIDE, **more: Any) -> Request:
    return vlm.prepare(prompt, images, **{"max_new_tokens": TURN, "ignore_eos": True, **more})


def what(result: GenerationResult) -> Any:
    """That has to be the same of two answers, however much was found."""
    return result.token_ids, result.kept_stage1, result.kept_stage2, result.visual_tokens, result.prompt_tokens


def turned(request: Request, ids: Sequence[int], new_tokens: int | None = None) -> Request:
    """The prompt of a request, and ``ids`` behind it: a chat whose answers are tokenized as they were generated."""
    more = np.concatenate([request.input_ids, np.array(ids, np.int64)])
    return replace(request, input_ids=more, max_new_tokens=new_tokens or request.max_new_tokens, started=time.perf_counter())


def room(vlm: Pipeline, request: Request) -> int:
    """Tokens that the request might have; 0 where its prompt does not fit."""
    tokens = 0
    with suppress(PromptError, RequestError):
        while True:
            room_for_answer(vlm.manifest, request.input_ids, request.images, request.keeps, tokens + 1)
            tokens += 1
    return tokens


def alone(vlm: Pipeline, requests: Sequence[Request], **settings: Any) -> list[GenerationResult]:
    """One after the other in a scheduler of their own, which goes on from prefixes."""
    with Scheduler(vlm, slots=1, **{"reuse_prefixes": True, **settings}) as scheduler:
        return [scheduler.submit(request).result for request in requests]


def token_by_token(
    vlm: Pipeline, request: Request, came_with: int, tokens: Sequence[int] | None = None
) -> tuple[list[int], NDArray[np.float32]]:
    """Greedy answer and its logits [tokens, vocab], where stages chose for the first ``came_with`` rows of the prompt.

    All that follows them goes through the decoder one row at a time, as if it were generated.

    Args:
        tokens: taken as the answer whatever the logits say.
    """
    graphs, caches = vlm._graphs, vlm._backend.new_caches(1)
    prefilled, logits = graphs.prefill(replace(request, input_ids=request.input_ids[:came_with]), caches, 0)
    rest = request.input_ids[came_with:].tolist()
    for step, token in enumerate(rest):
        logits = graphs.decode(caches, [prefilled.following(step, token)])[0]
    answer, all_logits = list[int](), [logits]
    for step in range(request.max_new_tokens):
        answer.append(int(all_logits[-1].argmax()) if tokens is None else tokens[step])
        if step + 1 < request.max_new_tokens:
            following = prefilled.following(len(rest) + step, answer[-1])
            all_logits.append(graphs.decode(caches, [following])[0])
    return answer, np.stack(all_logits)


def vlm_answer(vlm: Pipeline, request: Request) -> GenerationResult:
    """Computed from its first row on."""
    return alone(vlm, [request], reuse_prefixes=False)[0]
