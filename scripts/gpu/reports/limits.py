"""Kernel timings beside the time that their bytes take at least, and beside the limits that the project sets itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Timings of check_kernels that have a limit, in microseconds; those of stage 2 are at the 7B models' shapes.
LIMITS_US = {
    "repulsion_1x576x1024_k96_fp16": 500.0,
    "repulsion_1x2880x1024_k480_fp16": 3000.0,
    "topk_1x32x32x131_k32_fp16": 100.0,
    "topk_1x32x32x515_k160_fp16": 100.0,
    "topk_1x32x32x700_k64_fp16": 100.0,
}
# Both stages together, of the prefill.
SHARE_LIMIT = 0.02
# Shape and budget -> the timings of its two stages.
_STAGES = {
    ("llava-1.5-7b", "64"): ("repulsion_1x576x1024_k96_fp16", "topk_1x32x32x131_k32_fp16"),
    ("llava-next-7b", "320"): ("repulsion_5x576x1024_k96_fp16", "topk_1x32x32x515_k160_fp16"),
}


def timings(printed: Mapping[str, Mapping[str, float]], bandwidth: float) -> list[dict[str, Any]]:
    """What check_kernels measured, each with its floor and, where it has one, its limit.

    Args:
        printed: ``timings_us`` of check_kernels: name -> median and min in microseconds, floor_bytes, moved_bytes.
        bandwidth: measured bytes per second.
    """
    return [
        {
            "name": name,
            "median_us": timing["median"],
            "min_us": timing["min"],
            "floor_bytes": timing["floor_bytes"],
            "moved_bytes": timing["moved_bytes"],
            "floor_us": timing["floor_bytes"] / bandwidth * 1e6,
            "limit_us": LIMITS_US.get(name),
            "within_limit": timing["median"] <= LIMITS_US[name] if name in LIMITS_US else None,
        }
        for name, timing in printed.items()
    ]


def selection_shares(measured: Sequence[Mapping[str, Any]], end_to_end: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Selection as a share of the prefill, for every shape, budget and backend of a pruned bundle that ran.

    ``of`` says what was counted: ``kernels``, both kernels as they were timed alone, where the bundle ran them; else
    ``selector``, stage 1's graph as it took in the bundle, whatever it was made of.

    Args:
        measured: from timings().
        end_to_end: record of that part.
    """
    medians = {timing["name"]: timing["median_us"] for timing in measured}
    shares = []
    for (shape, budget), names in _STAGES.items():
        for run in end_to_end.get("shapes", {}).get(shape, {}).get("runs", []):
            for one in run["contenders"]:
                if one["name"] != budget or not one["medians"]:
                    continue
                kernels = _runs_kernels(run["backend"], one) and all(name in medians for name in names)
                selection_ms = sum(medians[name] for name in names) / 1e3 if kernels else one["medians"]["select_ms"]
                prefill_ms = one["medians"]["prefill_ms"]
                share = selection_ms / prefill_ms
                shares.append(
                    {
                        "shape": shape,
                        "budget": budget,
                        "backend": run["backend"],
                        "of": "kernels" if kernels else "selector",
                        "selection_ms": selection_ms,
                        "prefill_ms": prefill_ms,
                        "share": share,
                        "within_limit": share <= SHARE_LIMIT,
                    }
                )
    return shares


def _runs_kernels(backend: str | None, contender: Mapping[str, Any]) -> bool:
    """TensorRT's engines have them as plugins; ONNX Runtime says whether it had the library of operators."""
    return backend == "tensorrt" or bool(contender["details"].get("operators"))
