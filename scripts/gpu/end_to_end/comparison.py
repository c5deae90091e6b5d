"""One backend's bundles, pruned and unpruned, and transformers on the same weights, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scripts.gpu.end_to_end.agreement import agreement
from scripts.gpu.end_to_end.baselines import BASELINES, COMPILED, TRANSFORMERS
from scripts.gpu.end_to_end.floors import decode_bytes, decode_report, weight_bytes
from scripts.gpu.end_to_end.flops import prefill_flops
from scripts.gpu.end_to_end.shapes import UNPRUNED
from scripts.gpu.end_to_end.task import Task
from scripts.gpu.pipelines import BundleTarget
from scripts.gpu.progress import Clock
from sts_export.backends.choice import CUDA
from sts_export.bundle.manifest import Bundle
from sts_export.measuring.turns import Contender, Outcome, Rules, take_turns

# Device memory that a contender takes, in units of its weights: they themselves, and copies of some; then the context, caches
# and workspace.
_MEMORY_FACTOR, _MEMORY_MORE = 1.1, 2 << 30
_CONTENDERS = "scripts.gpu.end_to_end.contenders"
_METRICS = ("first_token_ms", "prefill_ms", "decode_ms_per_token")


@dataclass(frozen=True)
class Competition:
    """What runs against each other.

    Args:
        backend: of sts-export; None: the baselines alone.
        baselines: those of BASELINES that run.
        ready: the bundles to run, by budget.
        bundles: all of them; what transformers does is counted by the unpruned one.
        checkpoint: folder that the bundles link to.
        operators: library of operators for ONNX Runtime on CUDA, if one was given.
        weights: bytes of the checkpoint.
        bandwidth: measured bytes per second.
    """

    backend: str | None
    baselines: Sequence[str]
    ready: Mapping[str, Bundle]
    bundles: Mapping[str, Bundle]
    checkpoint: str
    operators: str | None
    weights: int
    bandwidth: float


def compare(competition: Competition, task: Task, repeats: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """Time everything; contenders are named by their budget, ``transformers``, or ``transformers-compiled``.

    That one runs after the others, and takes what time they left: compiling may take all there is.

    Yields:
        The record as far as it goes: without the compiled one, and with it.
    """
    contenders, last = _contenders(competition)
    together = _fit_together(len(contenders), competition.weights, task.device)
    rules = replace(rules_for(task, repeats, clock), together=together)
    outcomes: list[Outcome] = []
    for group in filter(None, (contenders, last)):
        outcomes += take_turns(group, task, rules)
        yield {
            "backend": competition.backend,
            "together": together,
            "contenders": [_record(outcome, competition, task) for outcome in outcomes],
            "ratios": _ratios(outcomes),
            "agreement": agreement(_measured(outcomes, UNPRUNED), _measured(outcomes, TRANSFORMERS)),
        }


def rules_for(task: Task, repeats: int, clock: Clock) -> Rules:
    """Of all comparisons: one that fails is left out."""
    return Rules(
        repeats,
        warm_ups=2,  # engines choose and compile kernels in the first run, and some capture a graph in the second
        load_at_once=task.device == "cpu",  # toys; else one after the other, so that memory can be told apart
        leave_out=True,
        used_memory=_memory_probe(task.device),
        remaining_s=lambda: clock.remaining_s,
        say=clock.say,
    )


def bundle_contender(name: str, target: BundleTarget, opener: str = f"{_CONTENDERS}:open_bundle") -> Contender:
    """A bundle's process needs no torch, and must find CUDA without it."""
    return Contender(name, opener, target, ("onnxruntime", "sts_export.generation.pipeline"))


def _contenders(competition: Competition) -> tuple[list[Contender], list[Contender]]:
    """Those that run in turn, and the compiled one."""
    imports, target = ("torch", "transformers"), {"checkpoint": competition.checkpoint}
    openers = {TRANSFORMERS: f"{_CONTENDERS}:open_transformers", COMPILED: f"{_CONTENDERS}:open_compiled_transformers"}
    baselines = {name: Contender(name, openers[name], target, imports) for name in competition.baselines}
    contenders = [baselines[TRANSFORMERS]] if TRANSFORMERS in baselines else []
    if competition.backend is not None:
        operators = competition.operators if competition.backend == CUDA else None
        for budget, bundle in competition.ready.items():
            contenders.append(bundle_contender(budget, BundleTarget(str(bundle.folder), competition.backend, operators)))
    return contenders, [baselines[COMPILED]] if COMPILED in baselines else []


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
    medians = outcome.medians()
    record: dict[str, Any] = {**asdict(outcome), "medians": medians}
    if medians:
        bundle = competition.bundles[UNPRUNED if outcome.name in BASELINES else outcome.name]
        record["prefill_flops"] = prefill_flops(bundle.manifest, outcome.details["prompt_rows"])
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
    for base in (UNPRUNED, *BASELINES):
        slow = _measured(outcomes, base)
        for outcome in outcomes:
            if slow is None or not outcome.values or outcome.name in (base, *BASELINES):
                continue
            theirs, ours = slow.medians(), outcome.medians()
            faster = {metric: theirs[metric] / ours[metric] for metric in _METRICS}
            ratios.append({"contender": outcome.name, "base": base, "times_faster": faster})
    return ratios
