"""The beginning of a prompt is taken from the cache rows of an earlier one where it is there, and never where it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.generation.scheduling.scheduler import Scheduler
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.sampling_config import SamplingConfig
from tests.generation.scheduling.chats import (
    METHODS,
    MORE,
    TURN,
    Open,
    alone,
    asked,
    room,
    token_by_token,
    turned,
    vlm_answer,
    what,
)
from tests.support.mixed_requests import SQUARE, TALL, WIDE
from tests.support.pipelines import Spy

# What is computed


def test_only_the_new_text_is_computed(watched: tuple[Pipeline, Spy]) -> None:
    vlm, spy = watched
    first = asked(vlm)
    with Scheduler(vlm, slots=2, reuse_prefixes=True) as scheduler:
        answer = scheduler.submit(first).result
        assert answer.cached_tokens == 0 and {"vision_encoder", "selector"} <= set(spy.calls)
        spy.calls.clear()
        spy.decoder.clear()
        second = turned(first, [*answer.token_ids, *MORE])
        again = scheduler.submit(second).result
    assert spy.calls[:2] == ["llm_lower", "llm_upper"] and not {"vision_encoder", "selector"} & set(spy.calls)
    rows = len(first.input_ids)
    prompt = spy.decoder[0]
    assert prompt.slot == 0
    assert prompt.inputs["input_ids"].tolist() == [[answer.token_ids[-1], *MORE]]
    assert prompt.inputs["write_index"].tolist() == [rows + TURN - 1]
    assert again.cached_tokens == rows + TURN - 1 and again.prompt_tokens == len(second.input_ids)
    times = again.timings_ms
    assert (times.vision, times.select, times.vision_saved) == (0, 0, 0) and times.prefill_lower > 0
    assert (again.kept_stage1, again.kept_stage2) == (answer.kept_stage1, answer.kept_stage2)
    assert again.token_ids == token_by_token(vlm, second, rows)[0]


def test_it_is_off_unless_asked_for(watched: tuple[Pipeline, Spy]) -> None:
    vlm, spy = watched
    with Scheduler(vlm, slots=1) as scheduler:
        results = [scheduler.submit(asked(vlm)).result for _ in range(2)]
    assert spy.calls.count("vision_encoder") == 2 and [one.cached_tokens for one in results] == [0, 0]


def test_the_same_question_again(of_method: Open) -> None:
    """Its last token is run, whose logits are needed."""
    for name in METHODS:
        request = asked(of_method(name))
        first, again = alone(of_method(name), [request, request])
        assert what(again) == what(first) and again.cached_tokens == len(request.input_ids) - 1


@pytest.mark.parametrize("name", METHODS)
def test_another_question_about_the_picture(of_method: Open, name: str) -> None:
    """The picture's rows serve it where no word had a part in their choice."""
    vlm = of_method(name)
    requests = [asked(vlm), asked(vlm, "What is in the picture of the cat?")]
    _, other = alone(vlm, requests)
    assert what(other) == what(vlm_answer(vlm, requests[1]))
    depends = name not in ("before", "none")
    assert (other.cached_tokens == 0) == depends
    assert depends or other.cached_tokens > other.visual_tokens.stage1


@pytest.mark.parametrize("name", METHODS)
def test_an_earlier_turn_is_asked_anew(of_method: Open, name: str) -> None:
    """The rows behind the common beginning are given up: those of the last question and of its answer."""
    vlm = of_method(name)
    first = asked(vlm)
    (answer,) = alone(vlm, [first])
    said = [*answer.token_ids, *MORE]
    requests = [first, turned(first, said), turned(first, [*said[:-1], 200, 201]), turned(first, said)]
    results = alone(vlm, requests)
    rows = len(first.input_ids)
    assert [one.cached_tokens for one in results] == [0, rows + TURN - 1, rows + len(said) - 1, rows + len(said) - 1]
    for request, result in zip(requests, results, strict=True):
        assert result.token_ids == token_by_token(vlm, request, rows)[0]
    assert what(results[3]) == what(results[1])


# What it must not be taken for


@pytest.mark.parametrize(
    "change",
    [
        {"images": SQUARE},
        {"images": TALL},
        {"images": [WIDE, SQUARE]},
        {"images": None},
        {"keep": (19, 8)},
        {"keep": (20, 7)},
        {"prompt": "Where is it?"},
    ],
    ids=["another picture", "a taller one", "two", "none", "K", "K'", "another question"],
)
def test_another_picture_budget_or_question_is_computed(of_method: Open, change: dict[str, Any]) -> None:
    vlm = of_method("sts")
    request = asked(vlm, **change)
    _, other = alone(vlm, [asked(vlm), request])
    assert what(other) == what(vlm_answer(vlm, request))
    assert other.cached_tokens == 0 or change == {"images": None}


def test_a_further_picture_is_computed(of_method: Open) -> None:
    """A turn that brings one chooses among all of them."""
    vlm = of_method("none")
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
    ]
    requests = [asked(vlm, chat[:1], [WIDE]), asked(vlm, chat, [WIDE, SQUARE])]
    _, other = alone(vlm, requests)
    assert other.cached_tokens == 0 and what(other) == what(vlm_answer(vlm, requests[1]))


def test_text_after_a_chat_with_a_picture(of_method: Open) -> None:
    vlm = of_method("sts")
    request = asked(vlm, "What is on the table?", None)
    _, text = alone(vlm, [asked(vlm), request])
    assert text.cached_tokens == 0 and what(text) == what(vlm_answer(vlm, request))


def test_another_seed_draws_again(of_method: Open) -> None:
    """With the same one the first choice stays."""
    vlm = of_method("random")
    seeds = [SamplingConfig(seed=seed) for seed in (1, 1, 2)]
    first, again, other = alone(vlm, [asked(vlm, sampling=seed) for seed in seeds])
    assert again.cached_tokens > 0 and again.kept_stage1 == first.kept_stage1
    assert other.cached_tokens == 0 and other.kept_stage1 != first.kept_stage1


def test_an_answer_that_is_tokenized_anew(of_method: Open) -> None:
    """As a client sends it: text, which ends up as other tokens than were generated."""
    vlm = of_method("sts")
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the table?"}]}
    first = asked(vlm, [question], [WIDE])
    (answer,) = alone(vlm, [first])
    chat = [question, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "And in the picture?"}]
    second = asked(vlm, chat, [WIDE])
    rows = len(first.input_ids)
    generated = [*first.input_ids, *answer.token_ids]
    assert second.input_ids[:rows].tolist() == first.input_ids.tolist()
    assert second.input_ids[: len(generated)].tolist() != generated
    _, again = alone(vlm, [first, second])
    assert rows <= again.cached_tokens < rows + TURN
    assert again.token_ids == token_by_token(vlm, second, rows)[0]


def test_the_settings_of_a_turn_are_its_own(of_method: Open) -> None:
    """Penalties look at the whole prompt, and lengths, stop strings and samplers are this request's."""
    vlm = of_method("none")
    first = asked(vlm)
    (answer,) = alone(vlm, [first])
    second = turned(first, [*answer.token_ids, *MORE], 9)
    plain = vlm_answer(vlm, second)
    changes: list[dict[str, Any]] = [
        {"logits": LogitsConfig(repetition_penalty=1.7, no_repeat_ngram_size=2)},
        {"sampling": SamplingConfig(temperature=1.3, seed=4)},
        {"stop": (plain.text[2:4],)},
        {"max_new_tokens": 2},
    ]
    for change in changes:
        request = replace(second, **change)
        _, found = alone(vlm, [first, request])
        assert found.cached_tokens > 0
        wanted = vlm_answer(vlm, request)
        assert (what(found), found.text, found.finish_reason) == (what(wanted), wanted.text, wanted.finish_reason)
        assert found.text != plain.text


@pytest.mark.parametrize("name", ["sts", "none"])
def test_a_chat_to_the_last_row(of_method: Open, name: str) -> None:
    """A slot that is full keeps all but its last row, which idle steps need."""
    vlm = of_method(name)
    first = asked(vlm)
    said = [*MORE, *[7] * (room(vlm, first) - len(MORE) - 24)]
    fill = turned(first, said, 24)
    assert room(vlm, fill) == 24
    with Scheduler(vlm, slots=2, reuse_prefixes=True) as scheduler:
        answers = [scheduler.submit(one) for one in (fill, asked(vlm, images=SQUARE, max_new_tokens=24))]
        whole, _ = (answer.result for answer in answers)  # the second one has steps of its own at the end
        last = turned(fill, whole.token_ids[:-1], 1)
        assert room(vlm, last) == 1
        end, again = scheduler.submit(last).result, scheduler.submit(fill).result
    assert end.cached_tokens == len(last.input_ids) - 1 and end.token_ids == whole.token_ids[-1:]
    assert again.cached_tokens == len(fill.input_ids) - 1 and what(again) == what(whole)
