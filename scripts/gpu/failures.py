"""What went wrong in a run, in one line each: the last that it prints, and what its exit code goes by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.gpu.end_to_end.comparison import TRANSFORMERS


def failures(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of all parts that ran; backends and sanitizers that are not installed are none."""
    found: list[str] = []
    if kernels := records.get("kernels"):
        found += _kernels(kernels)
    if end_to_end := records.get("end-to-end"):
        found += _end_to_end(end_to_end)
    return [f"failed: {' '.join(one.split())}" for one in found]


def _kernels(record: Mapping[str, Any]) -> Iterator[str]:
    build, checks = record.get("build", {}), record.get("checks", {})
    if error := record.get("error") or build.get("error") or checks.get("error"):
        yield f"kernels: {error}"
    elif not checks.get("checks"):
        yield "kernels: nothing was checked"
    if wrong := checks.get("failures"):
        yield f"kernels: {len(wrong)} of {checks['checks']} checks, the first: {wrong[0]}"
    for tool, report in record.get("sanitizer", {}).items():
        if report["clean"] is False:
            yield f"kernels: {tool}: {report['reason']}"


def _end_to_end(record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("error"):
        yield f"end-to-end: {record['error']}"
    for name, shape in record.get("shapes", {}).items():
        if shape["error"]:
            yield f"{name}: {shape['error']}"
        for run in shape["runs"]:
            where = f"{name}, {run['backend'] or TRANSFORMERS}"
            errors = {one["name"]: one["error"] for one in run["contenders"]}
            for budget, build in run["builds"].items():
                if build["error"]:
                    yield f"{where}: no engines at budget {budget}: {build['error']}"
            if len(errors) > 1 and None not in errors.values() and len(set(errors.values())) == 1:
                yield f"{where}: every contender: {next(iter(errors.values()))}"
            else:
                yield from (f"{where}: {contender}: {error}" for contender, error in errors.items() if error)
