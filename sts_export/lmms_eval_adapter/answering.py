"""Questions to answers: those that are asked with the same settings run together, answers are in the order of the questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sts_export.errors import RequestError
from sts_export.generation.pipeline import Pipeline
from sts_export.generation.result import GenerationResult
from sts_export.lmms_eval_adapter.chats import unpack
from sts_export.lmms_eval_adapter.settings import Settings
from sts_export.media.images import ImageSource
from sts_export.requests.messages import Messages

# Pictures are held for so many batches at a time: enough that slots are refilled as answers end, few enough for memory.
BATCHES_AT_A_TIME = 4


@dataclass(frozen=True)
class Question:
    """One request.

    Args:
        name: task, split and document, for messages.
        settings: how it is answered.
        messages: gives the chat, as :func:`unpack` takes it; called when its turn has come.
    """

    name: str
    settings: Settings
    messages: Callable[[], Sequence[Mapping[str, Any]]]


def answer_all(
    pipeline: Pipeline,
    questions: Sequence[Question],
    batch_size: int,
    answered: Callable[[int], object] = lambda count: None,
    **more: Any,
) -> list[GenerationResult]:
    """Answers in the order of the questions.

    Args:
        batch_size: at most this many run together.
        answered: told how many more answers there are.
        more: for all of them, as :meth:`Pipeline.generate` takes it, such as ``budget`` or ``keep``.

    Raises:
        StsExportError: as :meth:`Pipeline.generate`; where a single question is wrong, the message begins with its name.
    """
    groups: dict[Settings, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        groups[question.settings].append(index)
    results: dict[int, GenerationResult] = {}
    at_a_time = batch_size * BATCHES_AT_A_TIME
    for settings, indices in groups.items():
        for start in range(0, len(indices), at_a_time):
            chosen = indices[start : start + at_a_time]
            arguments = {**settings.arguments, **more}
            found = _answer(pipeline, [questions[index] for index in chosen], batch_size, arguments)
            results.update(zip(chosen, found, strict=True))
            answered(len(chosen))
    return [results[index] for index in range(len(questions))]


def _answer(
    pipeline: Pipeline, questions: Sequence[Question], batch_size: int, arguments: Mapping[str, Any]
) -> list[GenerationResult]:
    prompts: list[Messages] = []
    images: list[list[ImageSource]] = []
    for question in questions:
        try:
            prompt, pictures = unpack(question.messages())
        except RequestError as error:
            raise _named(question, error) from error
        prompts.append(prompt)
        images.append(pictures)
    try:
        return pipeline.generate(prompts, images, batch_size=batch_size, **arguments)
    except RequestError as error:
        if error.request is None:
            raise
        raise _named(questions[error.request], error) from error


def _named(question: Question, error: RequestError) -> RequestError:
    """The error of a request, which begins with its name."""
    return type(error)(f"{question.name}: {error}")
