"""What the project aims at on a GPU, and whether what was measured meets it, in so many words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scripts.gpu.end_to_end.baselines import BASELINES
from scripts.gpu.end_to_end.shapes import UNPRUNED
from scripts.gpu.reports.limits import LIMITS_US, SHARE_LIMIT
from scripts.gpu.smoke.answers import is_equal

# Shape, budget -> at least how many times faster its prefill is than the unpruned one on the same engine (the paper).
_PREFILL_TIMES = {("llava-next-7b", "320"): 6.6}
_SHARE_OF_FLOOR = 0.75  # of decode
_Target = tuple[str, float | None, bool | None]


def targets(part: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target that a part has something to say about: ``target`` in words, ``measured``, and ``met``, None where it was
    not measured.
    """
    return [{"target": words, "measured": value, "met": met} for words, value, met in _OF_PART[part](record)]


def _kernels(record: Mapping[str, Any]) -> Iterator[_Target]:
    checks = record.get("checks", {})
    count, wrong = checks.get("checks"), checks.get("failures") or []
    on_gpu = bool(count) and checks.get("device") != "none"
    yield (
        f"kernels equal the host's to the index (wrong of {count or 0} checks)",
        len(wrong) if on_gpu else None,
        not wrong and not checks.get("error") if on_gpu else None,
    )
    yield "TensorRT's plugins pass sts_conformance", None, record.get("conformance", {}).get("passed")
    medians = {timing["name"]: timing["median_us"] for timing in record.get("timings", [])}
    for name, limit in LIMITS_US.items():
        yield f"{name} takes at most {limit:.0f} us", medians.get(name), _at_most(medians.get(name), limit)


def _sanitize(record: Mapping[str, Any]) -> Iterator[_Target]:
    for tool, report in record.get("sanitizer", {}).items():
        yield f"{tool} finds nothing in the kernels", None, report["clean"]


def _smoke(record: Mapping[str, Any]) -> Iterator[_Target]:
    for engine in record.get("engines", []):
        if engine["against"] is not None:
            words = f"{engine['engine']} gives the tokens and kept indices of {engine['against']}, {engine['dtype']}"
            comparison = engine.get("comparison")
            met = None if engine["error"] or comparison is None else is_equal(comparison)
            yield words, comparison["equal_tokens"] / comparison["of"] if comparison and comparison["of"] else None, met


def _end_to_end(record: Mapping[str, Any]) -> Iterator[_Target]:
    for shape, result in record.get("shapes", {}).items():
        for run in result["runs"]:
            if run["backend"] is not None:
                yield from _of_run(shape, run)
    for share in record.get("selection_shares", []):
        where = f"{share['shape']}, budget {share['budget']}, {share['backend']}"
        words = f"{where}: selection ({share['of']}) takes at most {SHARE_LIMIT:.0%} of the prefill"
        yield words, share["share"], share["within_limit"]


def _of_run(shape: str, run: Mapping[str, Any]) -> Iterator[_Target]:
    faster = {(ratio["contender"], ratio["base"]): ratio["times_faster"] for ratio in run["ratios"]}
    for contender in run["contenders"]:
        budget = contender["name"]
        if budget in BASELINES:
            continue
        where = f"{shape}, {'unpruned' if budget == UNPRUNED else f'budget {budget}'}, {run['backend']}"
        if (times := _PREFILL_TIMES.get((shape, budget))) is not None:
            value = faster.get((budget, UNPRUNED), {}).get("prefill_ms")
            yield f"{where}: prefill at least {times} times as fast as unpruned", value, _at_least(value, times)
        floor = contender["decode"]["share_of_floor"] if contender["medians"] else None
        words = f"{where}: decode at least {_SHARE_OF_FLOOR:.0%} of what the memory allows"
        yield words, floor, _at_least(floor, _SHARE_OF_FLOOR)
        for base in (one["name"] for one in run["contenders"] if one["name"] in BASELINES and budget != UNPRUNED):
            for metric, name in (("first_token_ms", "first token"), ("decode_ms_per_token", "decode")):
                value = faster.get((budget, base), {}).get(metric)
                yield f"{where}: {name} faster than {base} (times)", value, None if value is None else value > 1


def _nothing(record: Mapping[str, Any]) -> Iterator[_Target]:
    return iter(())


def _at_most(value: float | None, limit: float) -> bool | None:
    return None if value is None else value <= limit


def _at_least(value: float | None, limit: float) -> bool | None:
    return None if value is None else value >= limit


_OF_PART: dict[str, Callable[[Mapping[str, Any]], Iterator[_Target]]] = {
    "kernels": _kernels,
    "sanitize": _sanitize,
    "profile": _nothing,
    "smoke": _smoke,
    "end-to-end": _end_to_end,
    "ab": _nothing,
}
