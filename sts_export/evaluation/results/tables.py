"""Rows as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sts_export.evaluation.results.comparing import Comparison
from sts_export.evaluation.results.rows import Row


def to_json(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """One object; fractions, but for ``score``."""
    return {"rows": [_json(row, against) for row, against in zip(rows, comparisons, strict=True)]}


def _json(row: Row, against: Comparison) -> dict[str, Any]:
    return {
        "bundle": row.bundle,
        "method": row.method,
        "budget": row.budget,
        "keep": list(row.keep),
        "task": row.task,
        "asked": row.asked,
        "right": row.right,
        "accuracy": row.accuracy,
        "relative": against.relative,
        "low": row.interval[0],
        "high": row.interval[1],
        "score": {"name": row.score_name, "value": row.score, "low": row.score_interval[0], "high": row.score_interval[1]},
        "kinds": row.kinds,
        "metrics": row.metrics,
        "average_visual_tokens": row.average_visual_tokens,
        "first_token_ms": row.first_token_ms,
        "unpruned": against.unpruned,
        "compared_with": against.base,
        "difference": against.difference,
        "difference_low": None if against.interval is None else against.interval[0],
        "difference_high": None if against.interval is None else against.interval[1],
        "only_base_right": against.only_base,
        "only_this_right": against.only_this,
        "mcnemar_p": against.p,
    }


def to_markdown(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    """A table; the benchmark's own score has columns where it is not the accuracy."""
    own = rows[0].score_name != "accuracy"
    header = ["bundle", "method", "budget", "task", "asked", "accuracy", "95 % interval"]
    header += [rows[0].score_name, "95 % interval"] if own else []
    header += ["relative", "difference", "McNemar p", "visual tokens", "first token"]
    lines = [header, ["---"] * len(header)]
    for row, against in zip(rows, comparisons, strict=True):
        line = [row.bundle, row.method, row.budget, row.task, str(row.asked), _percent(row.accuracy), _range(row.interval, 100)]
        line += [f"{row.score:.1f}", _range(row.score_interval, 1)] if own else []
        line += [
            "" if against.relative is None else _percent(against.relative),
            "" if against.difference is None or against.interval is None else _difference(against),
            "" if against.p is None else _p(against.p),
            f"{row.average_visual_tokens:.1f}",
            f"{row.first_token_ms:.0f} ms",
        ]
        lines.append(line)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _range(interval: tuple[float, float], scale: float) -> str:
    return f"{scale * interval[0]:.1f} to {scale * interval[1]:.1f}"


def _difference(against: Comparison) -> str:
    assert against.difference is not None and against.interval is not None
    low, high = (100 * end for end in against.interval)
    return f"{100 * against.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
