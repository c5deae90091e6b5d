"""Kernel timings beside the time that their bytes take at least, and beside the limits that the project sets itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.gpu.end_to_end.comparison import TRANSFORMERS

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
    """Both kernels together as a share of the prefill, for every shape, budget and backend that was measured.

    The prefill is that of the pruned bundle; where no backend could run it, transformers' unpruned one, and ``prefill_of``
    says so.

    Args:
        measured: from timings().
        end_to_end: record of that part.
    """
    medians = {timing["name"]: timing["median_us"] for timing in measured}
    shares = []
    for (shape, budget), names in _STAGES.items():
        if any(name not in medians for name in names):
            continue
        both_ms = sum(medians[name] for name in names) / 1e3
        for run in end_to_end.get("shapes", {}).get(shape, {}).get("runs", []):
            prefills = {one["name"]: one["medians"]["prefill_ms"] for one in run["contenders"] if one["medians"]}
            base = budget if budget in prefills else TRANSFORMERS
            if base in prefills:
                share = both_ms / prefills[base]
                shares.append(
                    {
                        "shape": shape,
                        "budget": budget,
                        "backend": run["backend"],
                        "prefill_of": base,
                        "kernels_ms": both_ms,
                        "prefill_ms": prefills[base],
                        "share": share,
                        "within_limit": share <= SHARE_LIMIT,
                    }
                )
    return shares
