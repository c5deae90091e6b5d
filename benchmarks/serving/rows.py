"""Rows of one contender, tables of them, and ratios of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.serving.clients import Seen

Row = dict[str, Any]


def row(clients: int, seen: Seen, memory: float) -> Row:
    """Rates, and percentiles in milliseconds; ``client_cpu_ms`` is what each answer, given up or not, took of the clients."""
    first, gaps = (np.array(values or [0.0]) * 1e3 for values in (seen.first, seen.gaps))
    return {
        "clients": clients,
        "seconds": seen.seconds,
        "right": seen.right,
        "wrong": seen.wrong,
        "cancelled": seen.cancelled,
        "failed": len(seen.failed),
        "answers_per_s": (seen.right + seen.wrong) / seen.seconds,
        "tokens_per_s": seen.tokens / seen.seconds,
        "first_token_ms": {"p50": float(np.percentile(first, 50)), "p99": float(np.percentile(first, 99))},
        "inter_token_ms": {"p50": float(np.percentile(gaps, 50)), "p99": float(np.percentile(gaps, 99))},
        "rss_mb": memory,
        "client_cpu_ms": 1e3 * seen.cpu / max(1, seen.right + seen.wrong + seen.cancelled),
    }


def table(rows: Sequence[Row], against: Row | None = None) -> str:
    """A line a row; ``x`` is its rate against that of the first one, or of ``against``."""
    head = f"{'clients':>7}{'tokens/s':>10}{'x':>6}{'answers':>9}{'wrong':>7}{'given up':>10}{'failed':>8}"
    lines = [head + f"{'first ms p50':>14}{'p99':>8}{'gap ms p50':>12}{'p99':>8}{'RSS MB':>8}"]
    base = (against or rows[0])["tokens_per_s"]
    for one in rows:
        ratio = one["tokens_per_s"] / base if base else 0.0
        first, gap = one["first_token_ms"], one["inter_token_ms"]
        line = f"{one['clients']:>7}{one['tokens_per_s']:>10.1f}{ratio:>6.2f}{one['right']:>9}{one['wrong']:>7}"
        line += f"{one['cancelled']:>10}{one['failed']:>8}{first['p50']:>14.0f}{first['p99']:>8.0f}"
        lines.append(line + f"{gap['p50']:>12.1f}{gap['p99']:>8.1f}{one['rss_mb']:>8.0f}{one['client_cpu_ms']:>15.1f}")
    return "\n".join(lines)


def ratios(ours: Sequence[Row], peer: Sequence[Row]) -> list[dict[str, float | None]]:
    """Ours / the peer's, of rows with as many clients; None where the peer has nothing."""
    return [
        {
            "clients": mine["clients"],
            "tokens_per_s": _over(mine["tokens_per_s"], other["tokens_per_s"]),
            "first_token_p50": _over(mine["first_token_ms"]["p50"], other["first_token_ms"]["p50"]),
            "first_token_p99": _over(mine["first_token_ms"]["p99"], other["first_token_ms"]["p99"]),
            "inter_token_p50": _over(mine["inter_token_ms"]["p50"], other["inter_token_ms"]["p50"]),
            "inter_token_p99": _over(mine["inter_token_ms"]["p99"], other["inter_token_ms"]["p99"]),
            "rss": _over(mine["rss_mb"], other["rss_mb"]),
            "client_cpu": _over(mine["client_cpu_ms"], other["client_cpu_ms"]),
        }
        for mine, other in zip(ours, peer, strict=True)
    ]


def comparison(rows: Mapping[str, Sequence[Row]], peer: str) -> str:
    """In Markdown: what each contender does at each number of clients, and its ratio to the peer's."""
    lines = [
        "| clients | | tokens/s | first token, p50 and p99 | between tokens, p50 and p99 | right, wrong, given up, failed "
        "| memory | client's CPU, each answer |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for place, other in enumerate(rows[peer]):
        for name, its in rows.items():
            one = its[place]
            first, gap = one["first_token_ms"], one["inter_token_ms"]
            cells = [str(one["clients"]), name, f"{one['tokens_per_s']:.1f}", f"{first['p50']:.0f}, {first['p99']:.0f} ms"]
            ends = ", ".join(str(one[end]) for end in ("right", "wrong", "cancelled", "failed"))
            cells += [f"{gap['p50']:.0f}, {gap['p99']:.0f} ms", ends]
            lines.append(_line([*cells, f"{one['rss_mb']:.0f} MB", f"{one['client_cpu_ms']:.1f} ms"]))
        for name, its in rows.items():
            if name != peer:
                found = ratios([its[place]], [other])[0]
                cells = [str(other["clients"]), f"**{name} / {peer}**", f"**{_two(found['tokens_per_s'])}**"]
                for what in ("first_token", "inter_token"):
                    cells.append(f"{_two(found[f'{what}_p50'])}, {_two(found[f'{what}_p99'])}")
                lines.append(_line([*cells, "", _two(found["rss"]), _two(found["client_cpu"])]))
    return "\n".join(lines)


def _over(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None


def _two(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
