"""``--model_args`` of lmms-eval, which come as text, numbers and truth values, or as YAML has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sts_export.errors import BudgetError, RequestError
from sts_export.pruning.per_request import Budget, Counts
from sts_export.requests.request import check_count
from sts_export.requests.wording import short


@dataclass(frozen=True)
class Arguments:
    """How a bundle is opened and asked.

    Args:
        bundle: folder written by ``sts-export``.
        budget, keep: as for :meth:`Pipeline.stream`.
        batch_size: requests that run together.
        max_new_tokens: where a task names no limit or a larger one; None leaves that to the task, and without a limit there to
            the checkpoint or, without one, to what fits.
        seed: of sampling and of stages that draw; None draws a fresh one for sampling.
        threads, backend, plugins: as for :class:`Pipeline`.
    """

    bundle: str
    budget: Budget | None = None
    keep: Counts | None = None
    batch_size: int = 1
    max_new_tokens: int | None = None
    seed: int | None = None
    threads: int | None = None
    backend: str | None = None
    plugins: str | None = None

    @property
    def pruning(self) -> dict[str, Any]:
        return {"budget": self.budget, "keep": self.keep}


NAMES = tuple(field.name for field in fields(Arguments))


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """``--model_args``, with lmms-eval's own ``batch_size``, ``max_batch_size`` and ``device``; None is as if not given.

    Raises:
        RequestError: an argument is missing, not known or of the wrong kind.
    """
    named = {name: value for name, value in given.items() if value is not None}
    named.pop("max_batch_size", None)  # the largest that --batch_size auto would try; nothing is tried here
    if "device" in named:
        raise RequestError(f"device {short(named['device'])} is not for bundles; leave --device out, and choose with backend=")
    unknown = sorted(named.keys() - set(NAMES))
    if unknown:
        raise RequestError(f"model argument {unknown[0]!r} is not known; use {', '.join(NAMES)}")
    if "bundle" not in named:
        raise RequestError("no bundle was given; add bundle=FOLDER to --model_args")
    for name in ("bundle", "backend", "plugins"):
        if name in named:
            named[name] = str(named[name])
    if "keep" in named:
        named["keep"] = _counts(named["keep"])
    named["batch_size"] = _batch_size(named.get("batch_size", 1))
    for name in ("batch_size", "max_new_tokens"):
        if name in named:
            check_count(name, named[name])
    return Arguments(**named)


def _batch_size(given: object) -> object:
    if isinstance(given, str) and given.startswith("auto"):
        raise RequestError(f"batch_size {given} is not supported: give a number, such as 8")
    return int(given) if isinstance(given, str) and given.isdecimal() else given


def _counts(given: Any) -> Counts:
    """K and K': ``[96,32]``, which lmms-eval does not cut at the comma, or a list in YAML."""
    parts = given.strip("[]()").split(",") if isinstance(given, str) else given
    try:
        first, second = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise BudgetError(f"keep {short(given)} is not two numbers: give keep=[K,K'] such as keep=[96,32]") from None
    return first, second
