"""A second turn about the same picture: only the new text is computed, and usage says so."""

from __future__ import annotations

from typing import Any

from sts_export import Pipeline
from tests.support.mixed_requests import SQUARE, Opened
from tests.support.pipelines import Spy
from tests.support.scheduling.served import MODEL, Start, chat


def two_turns(client: Any, prompt: str = "And where?") -> tuple[Any, Any]:
    messages = chat("What is on the table?", SQUARE)
    first = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": prompt}]
    second = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    return first, second


def test_the_second_turn_computes_only_its_text(start: Start, opened: Opened) -> None:
    with Pipeline(opened("llava").bundle.folder, threads=1) as vlm:
        spy = Spy.on(vlm)
        served = start(vlm, reuse_prefixes=True)
        first, second = two_turns(served.client())
        assert spy.calls.count("vision_encoder") == spy.calls.count("selector") == 1
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    cached = second.usage.prompt_tokens_details.cached_tokens
    # At least the first prompt up to its last picture and question is there.
    assert cached > 12 and cached < second.usage.prompt_tokens
    assert served.metric("sts_prefix_cache_hits_total") == cached
    asked = sum(turn.usage.prompt_tokens for turn in (first, second))
    assert served.metric("sts_prefix_cache_queries_total") == asked
    assert second.usage.visual_tokens == first.usage.visual_tokens


def test_without_reuse_every_turn_is_computed(start: Start, opened: Opened) -> None:
    with Pipeline(opened("llava").bundle.folder, threads=1) as vlm:
        spy = Spy.on(vlm)
        served = start(vlm)
        _, second = two_turns(served.client())
        assert spy.calls.count("vision_encoder") == 2
    assert second.usage.prompt_tokens_details.cached_tokens == 0
    assert served.metric("sts_prefix_cache_hits_total") == 0
