"""A request, checked against what the bundle can hold before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import PromptError, RequestError
from sts_export.families.capacities import Capacities
from sts_export.families.spec import ModelSpec
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.needs import SEEDS
from sts_export.media.prepared import PreparedImage
from sts_export.pruning.config import PruningConfig
from sts_export.requests.grammars.compiling import CompiledGrammar
from sts_export.requests.logits_config import LogitsConfig
from sts_export.requests.numbers import is_integer
from sts_export.requests.rows import unpruned_span
from sts_export.requests.sampling_config import SamplingConfig
from sts_export.requests.wording import short

MOST_LOGPROBS = 20  # OpenAI's top_logprobs


@dataclass(frozen=True)
class Request:
    """A request that was checked and fits.

    Args:
        input_ids: [sequence] int64, VISUAL_ROW in every place that an image keeps after stage 1, newlines included.
        images: with ``keeps``, how many tokens of each are left in every decoder part.
        started: time.perf_counter() when it came; ``preprocess_ms`` is what has passed since.
        logits: the request's own settings over the checkpoint's.
        budget: that ``keeps`` come from, as it was asked for; None for counts.
        logprobs: None for none; 0 for those of the generated tokens; more for so many of the most likely tokens, too.
        grammar: that the answer follows; None leaves it free.
        on_kept: told before the first token, by the thread that runs the engine, which visual tokens were kept: ``kept_stage1``
            and ``kept_stage2`` of the result.  None: nobody asks.
    """

    input_ids: NDArray[np.int64]
    images: tuple[PreparedImage, ...]
    keeps: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    sampling: SamplingConfig
    stop: tuple[str, ...]
    ignore_eos: bool
    started: float
    preprocess_ms: float
    logits: LogitsConfig = field(default_factory=LogitsConfig)
    budget: str | None = None
    logprobs: int | None = None
    grammar: CompiledGrammar | None = None
    on_kept: Callable[[list[list[int]], list[int]], None] | None = None

    @property
    def text_ids(self) -> NDArray[np.int64]:
        """[text] int64, the text tokens of the prompt."""
        ids: NDArray[np.int64] = self.input_ids[self.input_ids != VISUAL_ROW]
        return ids

    @property
    def seed(self) -> int:
        """Of stages that draw, as a number of int64 that draws the same; 0 where none is given."""
        return int(self.sampling.seed or 0) % SEEDS

    @property
    def rows(self) -> list[int]:
        """Rows of each image after stage 1, newlines included."""
        return [keeps[0] + image.num_newlines for image, keeps in zip(self.images, self.keeps, strict=True)]


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Raises RequestError for what is no whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} must be a whole number, not {value!r}", field=name)
    if value < 1:
        raise RequestError(f"{name} must be at least 1, not {value}", field=name)
    if most is not None and int(value) > most:
        raise RequestError(f"{name} must be at most {most}, not {value}", field=name)


def checked_logprobs(value: object) -> int | None:
    """``Request.logprobs`` of an argument.

    Raises:
        RequestError: neither None nor a whole number from 0 to ``MOST_LOGPROBS``.
    """
    if value is None:
        return None
    if not is_integer(value) or not 0 <= value <= MOST_LOGPROBS:
        raise RequestError(
            f"logprobs must be a whole number from 0 to {MOST_LOGPROBS}, not {short(value)}; leave it out for none",
            field="logprobs",
        )
    return int(value)


class Limits(Protocol):
    """What decides how much fits; a manifest is one."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def pruning(self) -> PruningConfig: ...

    @property
    def capacities(self) -> Capacities: ...


def room_for_answer(
    limits: Limits,
    input_ids: NDArray[np.int64],
    images: tuple[PreparedImage, ...],
    keeps: tuple[tuple[int, ...], ...],
    max_new_tokens: int | None,
    *,
    own_budget: bool = False,
) -> int:
    """Tokens that may be generated.  An engine writes past a full cache silently or not at all, so this is the guard.

    Args:
        own_budget: ``keeps`` are of a budget that the request itself asks for.

    Raises:
        PromptError: the prompt leaves no room for an answer.
        RequestError: more tokens were asked for than fit.
    """
    capacities = limits.capacities
    length = len(input_ids)
    kept: list[int] = [sum(of_part) for of_part in zip(*keeps, strict=True)] or [0] * len(capacities.rows)
    taken = [length - kept[0] + of_part for of_part in kept]  # rows of each decoder part
    positions = unpruned_span(input_ids, images) if limits.model.unpruned_positions(limits.pruning) else length
    if max_new_tokens is not None:
        check_count("max_new_tokens", max_new_tokens)
    # The last token generated is never written to a cache.
    left = min(rows - own for rows, own in zip(capacities.rows, taken, strict=True))
    room = min(left, capacities.positions - positions) + 1
    text = length - int(np.count_nonzero(input_ids == VISUAL_ROW))
    if room < 1:
        total = sum(image.num_tokens for image in images)
        visual = f" and {len(images)} image(s) of {total} visual tokens ({length - text} rows after stage 1)" if images else ""
        more = f" or --max-visual-tokens {total}" if total > capacities.visual_tokens else ""
        more += ", or give a smaller budget" if own_budget and images else ""
        raise PromptError(
            f"the prompt is too long: {text} text tokens{visual} leave no room for an answer in {capacities.rows[0]} cache "
            f"rows; shorten it or export with a larger --max-prompt-tokens{more}"
        )
    if max_new_tokens is None:
        return min(room, capacities.new_tokens)
    if max_new_tokens > room:
        raise RequestError(
            f"{max_new_tokens} new tokens do not fit: after {text} text tokens there is room for {room}; "
            "ask for fewer or export with a larger --max-new-tokens",
            field="max_new_tokens",
        )
    return max_new_tokens
