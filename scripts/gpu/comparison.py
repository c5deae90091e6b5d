"""One backend's bundles, pruned and unpruned, and transformers on the same weights, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.gpu.agreement import agreement
from scripts.gpu.floors import decode_bytes, decode_report, weight_bytes
from scripts.gpu.progress import Clock
from scripts.gpu.shapes import UNPRUNED
from scripts.gpu.turns import Contender, Outcome, Task, take_turns
from sts_export.bundle.manifest import Bundle

TRANSFORMERS = "transformers"
# Device memory that a contender takes, in units of its weights: they themselves, engines' copies and workspace, the context.
_MEMORY_FACTOR, _MEMORY_MORE = 1.3, 2 << 30
_METRICS = ("first_token_ms", "prefill_ms", "decode_ms_per_token")


@dataclass(frozen=True)
class Competition:
    """What runs against each other.

    Args:
        backend: of sts-export; None: transformers alone.
        ready: the bundles to run, by budget.
        bundles: all of them; what transformers does is counted by the unpruned one.
        checkpoint: folder that the bundles link to.
        weights: bytes of the checkpoint.
        bandwidth: measured bytes per second.
    """

    backend: str | None
    ready: Mapping[str, Bundle]
    bundles: Mapping[str, Bundle]
    checkpoint: str
    weights: int
    bandwidth: float


def compare(competition: Competition, task: Task, repeats: int, clock: Clock) -> dict[str, Any]:
    """Time everything; contenders are named by their budget, or ``transformers``."""
    contenders = [Contender(TRANSFORMERS, "scripts.gpu.contenders:open_transformers", {"checkpoint": competition.checkpoint})]
    if competition.backend is not None:
        for budget, bundle in competition.ready.items():
            target = {"bundle": str(bundle.folder), "backend": competition.backend}
            contenders.append(Contender(budget, "scripts.gpu.contenders:open_bundle", target))
    together = _fit_together(len(contenders), competition.weights, task.device)
    outcomes = take_turns(
        contenders, task, repeats=repeats, together=together, used_memory=_memory_probe(task.device), clock=clock
    )
    return {
        "backend": competition.backend,
        "together": together,
        "contenders": [_record(outcome, competition, task) for outcome in outcomes],
        "ratios": _ratios(outcomes),
        "agreement": agreement(_measured(outcomes, UNPRUNED), _measured(outcomes, TRANSFORMERS)),
    }


def _fit_together(count: int, weights: int, device: str) -> bool:
    """Whether all contenders fit into the device's free memory at once."""
    if device == "cpu":
        return True
    import torch

    return bool(count * (weights * _MEMORY_FACTOR + _MEMORY_MORE) < torch.cuda.mem_get_info()[0])


def _memory_probe(device: str) -> Callable[[], int | None]:
    """Bytes in use on the device, by all processes."""
    if device == "cpu":
        return lambda: None
    import torch

    def used() -> int:
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    return used


def _record(outcome: Outcome, competition: Competition, task: Task) -> dict[str, Any]:
    """With medians, and decode speed beside its floor."""
    medians = {metric: statistics.median(values) for metric, values in outcome.values.items()}
    record: dict[str, Any] = {**asdict(outcome), "medians": medians}
    if medians:
        bundle = competition.bundles[UNPRUNED if outcome.name == TRANSFORMERS else outcome.name]
        weights = weight_bytes(bundle, *(part.name for part in bundle.manifest.pruning.parts))
        nbytes = decode_bytes(bundle.manifest, weights, outcome.details["prompt_rows"], task.new_tokens)
        record["decode"] = decode_report(nbytes, competition.bandwidth, medians["decode_ms_per_token"])
    return record


def _measured(outcomes: Sequence[Outcome], name: str) -> Outcome | None:
    """The contender of that name, if it could run."""
    return next((outcome for outcome in outcomes if outcome.name == name and outcome.values), None)


def _ratios(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """How many times faster each bundle is than the unpruned one and than transformers."""
    ratios: list[dict[str, Any]] = []
    for base in (UNPRUNED, TRANSFORMERS):
        slow = _measured(outcomes, base)
        for outcome in outcomes:
            if slow is None or not outcome.values or outcome.name in (base, TRANSFORMERS):
                continue
            faster = {
                metric: statistics.median(slow.values[metric]) / statistics.median(outcome.values[metric])
                for metric in _METRICS
            }
            ratios.append({"contender": outcome.name, "base": base, "times_faster": faster})
    return ratios
