"""Ask one bundle, batch by batch and with every budget before the next batch: pictures are encoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sts_export.errors import ImageError, RequestError
from sts_export.evaluation.amounts import Amount
from sts_export.evaluation.journal import Answer, Journal
from sts_export.evaluation.questions import Question, Task
from sts_export.generation.pipeline import Pipeline
from sts_export.generation.result import GenerationResult
from sts_export.media.images import ImageSource, load_image

Run = tuple[Amount, Journal]


def missing(questions: Sequence[Question], runs: Sequence[Run]) -> int:
    """Answers that are still to come."""
    return sum(question.id not in journal.answers for _, journal in runs for question in questions)


def ask(
    pipeline: Pipeline,
    task: Task,
    questions: Sequence[Question],
    runs: Sequence[Run],
    *,
    batch_size: int,
    max_new_tokens: int,
    done: Callable[[int], None],
) -> None:
    """Answer what the journals lack, greedily.

    Args:
        done: is told how many answers have been added.

    Raises:
        ImageError, PromptError, RequestError: a question cannot be asked; it is named, and the batches before it are answered.
        OutputError: an answer cannot be written.
        BackendError: the engine failed.
    """
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        open_runs = [run for run in runs if missing(batch, [run])]
        if not open_runs:
            continue
        pictures = {question.id: _pictures(task, question) for question in batch}
        for amount, journal in open_runs:
            waiting = [question for question in batch if question.id not in journal.answers]
            for question, result in _answers(pipeline, task, waiting, pictures, amount, max_new_tokens):
                journal.add(_recorded(question, result))
                done(1)


def _answers(
    pipeline: Pipeline,
    task: Task,
    questions: Sequence[Question],
    pictures: dict[str, list[ImageSource]],
    amount: Amount,
    max_new_tokens: int,
) -> Iterable[tuple[Question, GenerationResult]]:
    given = [pictures[question.id] for question in questions]
    try:
        results = pipeline.generate(
            [question.prompt for question in questions],
            given,
            batch_size=len(questions),
            max_new_tokens=max_new_tokens,
            budget=amount.budget,
            keep=amount.keep,
        )
    except RequestError as error:
        if error.request is None:
            raise
        raise type(error)(f"question {questions[error.request].id} of {task.name}: {error}") from None
    return zip(questions, results, strict=True)


def _pictures(task: Task, question: Question) -> list[ImageSource]:
    """Decoded once for all budgets."""
    try:
        return [load_image(image() if callable(image) else image) for image in question.images]
    except ImageError as error:
        raise ImageError(f"question {question.id} of {task.name}: {error}") from None


def _recorded(question: Question, result: GenerationResult) -> Answer:
    timings = result.timings_ms
    saved = timings.vision_saved + timings.select_saved  # as if this question were the first about its picture
    pictures = timings.vision + timings.select + saved
    first_ms = timings.preprocess + pictures + timings.prefill_lower + timings.prefill_upper
    return Answer(question.id, result.text, len(result.token_ids), result.average_visual_tokens, first_ms)
