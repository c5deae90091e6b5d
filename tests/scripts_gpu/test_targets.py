"""What a run says of the project's targets."""

from __future__ import annotations

from typing import Any

from scripts.gpu.records import PARTS
from scripts.gpu.reports.limits import LIMITS_US, selection_shares
from scripts.gpu.reports.tables import format_tables
from scripts.gpu.reports.targets import targets


def verdicts(part: str, record: dict[str, Any]) -> dict[str, bool | None]:
    return {one["target"]: one["met"] for one in targets(part, record)}


def kernels(median_us: float, failures: list[str]) -> dict[str, Any]:
    return {
        "checks": {"device": "H100", "checks": 7, "failures": failures, "error": None},
        "timings": [{"name": "topk_1x32x32x131_k32_fp16", "median_us": median_us}],
        "conformance": {"passed": True},
    }


def test_kernels() -> None:
    exact, plugins, *timings = verdicts("kernels", kernels(20.0, [])).items()
    assert exact == ("kernels equal the host's to the index (wrong of 7 checks)", True) and plugins[1] is True
    assert len(timings) == len(LIMITS_US)
    assert dict(timings)["topk_1x32x32x131_k32_fp16 takes at most 100 us"] is True
    assert dict(timings)["repulsion_1x576x1024_k96_fp16 takes at most 500 us"] is None  # not timed
    slow = verdicts("kernels", kernels(101.0, ["topk: other rows"]))
    assert sorted(slow.values(), key=str) == [False, False, *[None] * (len(LIMITS_US) - 1), True]


def test_a_host_alone_and_nothing_at_all_meet_no_target() -> None:
    here = {"checks": {"device": "none", "checks": 3, "failures": [], "error": None}, "conformance": {"passed": None}}
    for record in (here, {"error": "OSError: no space"}):
        assert set(verdicts("kernels", record).values()) == {None}
    for part in PARTS:
        assert True not in verdicts(part, {"error": "OSError: no space"}).values()


def test_sanitizers_and_answers() -> None:
    reports = {"memcheck": {"clean": True}, "racecheck": {"clean": False}, "initcheck": {"clean": None}}
    assert list(verdicts("sanitize", {"sanitizer": reports}).values()) == [True, False, None]
    equal = {"of": 6, "equal_tokens": 6, "equal_kept": 6}
    engines = [
        {"engine": "cpu", "dtype": "float16", "against": None, "error": None},
        {"engine": "cuda", "dtype": "float16", "against": "cpu", "error": None, "comparison": equal},
        {"engine": "cuda", "dtype": "float32", "against": "cpu", "error": None, "comparison": {**equal, "equal_kept": 5}},
        {"engine": "cuda-operators", "dtype": "float32", "against": "cuda", "error": "died"},
    ]
    assert list(verdicts("smoke", {"engines": engines}).values()) == [True, False, None]


def contender(name: str, share_of_floor: float | None, operators: str | None = None) -> dict[str, Any]:
    """None: it failed."""
    if share_of_floor is None:
        return {"name": name, "medians": {}, "error": "died", "details": {}}
    medians = {"prefill_ms": 30.0, "select_ms": 0.3}
    details = {"operators": operators}
    return {"name": name, "medians": medians, "error": None, "details": details, "decode": {"share_of_floor": share_of_floor}}


def end_to_end(prefill: float) -> dict[str, Any]:
    times = {"prefill_ms": prefill, "first_token_ms": 3.0, "decode_ms_per_token": 0.9}
    theirs = {"name": "transformers", "medians": {"prefill_ms": 200.0}, "error": None}
    ours = [contender(name, share) for name, share in (("320", 0.8), ("100%", 0.7), ("160", None))]
    run = {
        "backend": "onnxruntime-cuda",
        "contenders": [theirs, *ours],
        "ratios": [{"contender": "320", "base": base, "times_faster": times} for base in ("100%", "transformers")],
    }
    return {"shapes": {"llava-next-7b": {"error": None, "runs": [run]}}}


def test_whole_requests() -> None:
    where = "llava-next-7b, budget 320, onnxruntime-cuda"
    record = end_to_end(6.7)
    record["selection_shares"] = selection_shares([], record)
    found = verdicts("end-to-end", record)
    assert found == {
        f"{where}: prefill at least 6.6 times as fast as unpruned": True,
        f"{where}: decode at least 75% of what the memory allows": True,
        f"{where}: first token faster than transformers (times)": True,
        f"{where}: decode faster than transformers (times)": False,
        "llava-next-7b, unpruned, onnxruntime-cuda: decode at least 75% of what the memory allows": False,
        "llava-next-7b, budget 160, onnxruntime-cuda: decode at least 75% of what the memory allows": None,
        "llava-next-7b, budget 160, onnxruntime-cuda: first token faster than transformers (times)": None,
        "llava-next-7b, budget 160, onnxruntime-cuda: decode faster than transformers (times)": None,
        f"{where}: selection (selector) takes at most 2% of the prefill": True,
    }
    assert verdicts("end-to-end", end_to_end(6.5))[f"{where}: prefill at least 6.6 times as fast as unpruned"] is False


def test_they_are_printed() -> None:
    found = [{"target": "a", "measured": 0.5, "met": False}, {"target": "b", "measured": None, "met": None}]
    record = {"sanitizer": {}, "targets": found}
    assert format_tables({"sanitize": record}).splitlines() == ["MISSED: a: 0.5", "not measured: b"]
