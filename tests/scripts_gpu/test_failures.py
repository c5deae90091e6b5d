"""What a run says last, and its exit code goes by."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.gpu.reports.failures import failures


def end_to_end(contenders: dict[str, str | None], builds: dict[str, str | None]) -> dict[str, Any]:
    """A record with these errors."""
    run = {
        "backend": "tensorrt",
        "contenders": [{"name": name, "error": error} for name, error in contenders.items()],
        "builds": {budget: {"error": error} for budget, error in builds.items()},
    }
    return {"end-to-end": {"shapes": {"llava-1.5-7b": {"error": None, "runs": [run]}}}}


def test_nothing_failed() -> None:
    assert failures(end_to_end({"transformers": None, "64": None}, {"64": None})) == []
    left_out = {"shapes": {}, "left_out": {"tensorrt": "tensorrt is not installed"}}
    assert failures({"end-to-end": left_out}) == []


def test_engines_that_were_not_built() -> None:
    """Though transformers ran."""
    (line,) = failures(end_to_end({"transformers": None}, {"64": "out of\nmemory"}))
    assert line == "failed: llava-1.5-7b, tensorrt: no engines at budget 64: out of memory"


def test_contenders() -> None:
    """All of them for one reason are one line."""
    where = "failed: llava-1.5-7b, tensorrt"
    assert failures(end_to_end({"transformers": None, "64": "died"}, {})) == [f"{where}: 64: died"]
    assert failures(end_to_end({"transformers": "died", "64": "died"}, {})) == [f"{where}: every contender: died"]
    different = failures(end_to_end({"transformers": "died", "64": "out of time"}, {}))
    assert different == [f"{where}: transformers: died", f"{where}: 64: out of time"]


def test_a_shape_and_a_part() -> None:
    shapes = {"llava-1.5-7b": {"error": "OSError: no space", "runs": []}}
    expected = ["failed: end-to-end: ValueError: no", "failed: llava-1.5-7b: OSError: no space"]
    assert failures({"end-to-end": {"error": "ValueError: no", "shapes": shapes}}) == expected


def test_a_baseline_that_cannot_be_compiled_is_none() -> None:
    assert failures(end_to_end({"transformers": None, "transformers-compiled": "died", "64": None}, {})) == []


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"sanitizer": {"memcheck": {"clean": None, "reason": "is not installed"}}}, []),
        ({"sanitizer": {"memcheck": {"clean": False, "reason": "4 errors"}}}, ["memcheck: 4 errors"]),
        ({"build": {"error": "cmake is not installed"}, "sanitizer": {}}, ["cmake is not installed"]),
    ],
)
def test_sanitizers(record: dict[str, Any], expected: list[str]) -> None:
    assert failures({"sanitize": record}) == [f"failed: sanitize: {line}" for line in expected]


GOOD: dict[str, Any] = {"build": {"error": None}, "checks": {"checks": 3, "failures": [], "error": None}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"conformance": {"passed": None, "reason": "it needs a GPU"}}, []),
        ({"conformance": {"passed": False, "reason": "exit code 1"}}, ["sts_conformance: exit code 1"]),
        ({"build": {"error": "nvcc is not installed"}, "checks": {}}, ["nvcc is not installed"]),
        ({"checks": {"error": "no JSON, exit code 2"}}, ["no JSON, exit code 2"]),
        ({"checks": {"checks": 0, "failures": [], "error": None}}, ["nothing was checked"]),
        ({"checks": {"checks": 3, "failures": ["topk", "b"], "error": None}}, ["2 of 3 checks, the first: topk"]),
        ({"error": "KeyError: x"}, ["KeyError: x"]),
    ],
)
def test_kernels(change: dict[str, Any], expected: list[str]) -> None:
    assert failures({"kernels": {**GOOD, **change}}) == [f"failed: kernels: {line}" for line in expected]
