"""Accuracy over budget, and over the time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sts_export.evaluation.results.rows import Row


def draw(rows: Sequence[Row]) -> Any:
    """A matplotlib figure: a line a bundle, with 95 % intervals; without matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for bundle in dict.fromkeys(row.bundle for row in rows):
        own = sorted((row for row in rows if row.bundle == bundle), key=lambda row: row.average_visual_tokens)
        shares = [100 * row.accuracy for row in own]
        ends = [(row.accuracy - row.interval[0], row.interval[1] - row.accuracy) for row in own]
        bars = 100 * np.maximum(np.array(ends).T, 0)  # drawn intervals may end a rounding away from the mean
        name = ascii(f"{bundle} ({own[0].method})")[1:-1].replace("$", r"\$")
        for axes, places in (
            (left, [row.average_visual_tokens for row in own]),
            (right, [row.first_token_ms for row in own]),
        ):
            axes.errorbar(places, shares, yerr=bars, marker="o", markersize=4, capsize=2, label=name)
    left.set_xscale("log", base=2)
    left.set_xlabel("visual tokens in a decoder layer, on average")
    right.set_xlabel("first token, median, ms")
    left.set_ylabel(f"accuracy on {rows[0].task}, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure
