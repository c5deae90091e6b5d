"""Answers in the order of the questions, as each is answered alone; what is wrong is an error that names its question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.errors import ImageError, PromptError, RequestError
from sts_export.lmms_eval_adapter import answering
from sts_export.lmms_eval_adapter.answering import Question, answer_all
from sts_export.lmms_eval_adapter.settings import read_settings
from sts_export.requests.logits_config import LogitsConfig
from tests.support.mixed_requests import NEW, REQUESTS, Opened, alone, same


@pytest.fixture
def pipeline(opened: Opened) -> Pipeline:
    return opened("llava")


def chat(prompt: Any, images: Any) -> list[dict[str, Any]]:
    """A request as ``doc_to_messages`` gives it: pictures before the text."""
    if not isinstance(prompt, str):
        return list(prompt)
    pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    parts = [{"type": "image", "url": image} for image in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def questions(pipeline: Pipeline, **given: Any) -> list[Question]:
    settings = read_settings(given, pipeline)
    return [Question(f"mixed, test {index}", settings, partial(chat, *request)) for index, request in enumerate(REQUESTS)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_those_of_the_pipeline(pipeline: Pipeline, batch_size: int) -> None:
    """In batches, too: eight requests of several pictures, lengths and none."""
    told: list[int] = []
    answers = answer_all(pipeline, questions(pipeline, max_new_tokens=6), batch_size, told.append)
    same(answers, alone(pipeline, max_new_tokens=6))
    assert sum(told) == len(REQUESTS)
    assert len({tuple(answer.token_ids) for answer in answers}) > 4


def test_the_budget_is_that_of_every_request(pipeline: Pipeline) -> None:
    answers = answer_all(pipeline, questions(pipeline, max_new_tokens=4), 4, budget=4)
    same(answers, alone(pipeline, max_new_tokens=4, budget=4))


def test_other_settings_between_keep_the_order(pipeline: Pipeline) -> None:
    short, long = questions(pipeline, max_new_tokens=2), questions(pipeline, max_new_tokens=5)
    mixed = [pair[index % 2] for index, pair in enumerate(zip(short, long, strict=True))]
    answers = answer_all(pipeline, mixed, 4)
    expected = [alone(pipeline, max_new_tokens=2), alone(pipeline, max_new_tokens=5)]
    same(answers, [expected[index % 2][index] for index in range(len(REQUESTS))])


def test_pictures_are_opened_a_few_batches_at_a_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "BATCHES_AT_A_TIME", 1)
    events: list[str] = []
    settings = read_settings({"max_new_tokens": 1}, pipeline)

    def messages() -> Sequence[Mapping[str, Any]]:
        events.append("opened")
        return chat("What?", None)

    asked = [Question(str(index), settings, messages) for index in range(4)]
    answer_all(pipeline, asked, 2, lambda count: events.append(f"answered {count}"))
    assert events == ["opened", "opened", "answered 2"] * 2


def test_nothing_asked(pipeline: Pipeline) -> None:
    assert answer_all(pipeline, [], 2) == []


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        (chat("What?", "/no/such/picture.png"), ImageError, "does not exist"),
        (chat("word " * 500, None), PromptError, "the prompt is too long"),
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], PromptError, "a video"),
        (chat(" ", None), PromptError, "the prompt is empty"),
    ],
)
def test_a_wrong_question_is_named(pipeline: Pipeline, messages: Any, error: type[Exception], said: str) -> None:
    asked = questions(pipeline, max_new_tokens=2)
    asked[5] = Question("mixed, test 5", asked[5].settings, lambda: messages)
    with pytest.raises(error, match=f"^mixed, test 5: .*{said}") as caught:
        answer_all(pipeline, asked, 3)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_are_errors(pipeline: Pipeline) -> None:
    """More new tokens than the bundle holds, which would be shorter answers than the task asks for."""
    with pytest.raises(RequestError, match=r"^mixed, test 0: .*new tokens do not fit"):
        answer_all(pipeline, questions(pipeline, max_new_tokens=50 * NEW), 2)


def test_a_failure_that_is_no_questions_own_stays(pipeline: Pipeline) -> None:
    vocabulary = pipeline.manifest.model.decoder.vocab_size
    settings = read_settings({"max_new_tokens": 2}, pipeline)
    asked = [Question("a", settings, lambda: chat("What?", None))]
    with pytest.raises(RequestError, match=r"^(?!a:)"):
        answer_all(pipeline, asked, 2, logits=LogitsConfig(suppress_tokens=list(range(vocabulary))))
