"""What went wrong in a run, in one line each: the last that it prints, and what its exit code goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scripts.gpu.end_to_end.baselines import COMPILED, TRANSFORMERS
from scripts.gpu.smoke.answers import is_equal


def failures(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of all parts that ran; backends and sanitizers that are not installed are none."""
    found: list[str] = []
    for part, record in records.items():
        found += (f"{part}: {record['error']}",) if record.get("error") else ()
        found += _OF_PART[part](record)
    return [f"failed: {' '.join(one.split())}" for one in found]


def _kernels(record: Mapping[str, Any]) -> Iterator[str]:
    checks = record.get("checks", {})
    if error := _build_error(record) or checks.get("error"):
        yield f"kernels: {error}"
    elif not checks.get("checks") and not record.get("error"):
        yield "kernels: nothing was checked"
    if wrong := checks.get("failures"):
        yield f"kernels: {len(wrong)} of {checks['checks']} checks, the first: {wrong[0]}"
    if record.get("conformance", {}).get("passed") is False:
        yield f"kernels: sts_conformance: {record['conformance']['reason']}"


def _sanitize(record: Mapping[str, Any]) -> Iterator[str]:
    if error := _build_error(record):
        yield f"sanitize: {error}"
    for tool, report in record.get("sanitizer", {}).items():
        if report["clean"] is False:
            yield f"sanitize: {tool}: {report['reason']}"


def _profile(record: Mapping[str, Any]) -> Iterator[str]:
    if error := _build_error(record):
        yield f"profile: {error}"


def _build_error(record: Mapping[str, Any]) -> str | None:
    error: str | None = record.get("build", {}).get("error")
    return error


def _smoke(record: Mapping[str, Any]) -> Iterator[str]:
    capture = record.get("capture")
    if capture and not capture["right"]:
        yield f"smoke: capture: {capture['error'] or 'other bytes came back'}"
    for engine in record.get("engines", []):
        where, comparison = f"smoke: {engine['dtype']}, {engine['engine']}", engine.get("comparison")
        if engine["error"]:
            yield f"{where}: {engine['error']}"
        elif comparison is not None and not is_equal(comparison):
            yield f"{where}: other answers than {engine['against']}: {comparison['equal_tokens']} of {comparison['of']} equal"


def _ab(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"ab: {way['name']}: {way['error']}" for way in record.get("ways", []) if way["error"])


def _end_to_end(record: Mapping[str, Any]) -> Iterator[str]:
    for name, shape in record.get("shapes", {}).items():
        if shape["error"]:
            yield f"{name}: {shape['error']}"
        for run in shape["runs"]:
            where = f"{name}, {run['backend'] or TRANSFORMERS}"
            # transformers compiles what it can; where it cannot, the table says so.
            errors = {one["name"]: one["error"] for one in run["contenders"] if one["name"] != COMPILED}
            for budget, build in run["builds"].items():
                if build["error"]:
                    yield f"{where}: no engines at budget {budget}: {build['error']}"
            if len(errors) > 1 and None not in errors.values() and len(set(errors.values())) == 1:
                yield f"{where}: every contender: {next(iter(errors.values()))}"
            else:
                yield from (f"{where}: {contender}: {error}" for contender, error in errors.items() if error)


_OF_PART: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "kernels": _kernels,
    "sanitize": _sanitize,
    "profile": _profile,
    "smoke": _smoke,
    "end-to-end": _end_to_end,
    "ab": _ab,
}
