"""Pictures of the analysis, drawn by matplotlib without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sts_export.analysis.tower.report import KINDS, AnalysisReport

_DPI = 110
_COLORS = ("#1b6ca8", "#d1730b", "#2c8a4b")


@dataclass(frozen=True)
class LayerMap:
    """Tokens of one layer: places [tokens, 2] on a plane, ranks [tokens] of their attention from 0 to 1."""

    layer: int
    places: NDArray[np.float32]
    ranks: NDArray[np.float64]


def draw_curve(report: AnalysisReport, file: Path) -> None:
    """The score over the layers, one line a k, with that of shuffled attention dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    layers = np.arange(1, report.num_layers + 1)
    for place, k in enumerate(report.k):
        means = [report.mean(int(layer), place)[0] for layer in layers]
        color = _COLORS[place % len(_COLORS)]
        scores = np.array([score.score for score in means], np.float64)  # None becomes NaN, a gap in the line
        axes.plot(layers, scores, "o-", color=color, markersize=4, label=f"k = {k}")
        shuffled = np.array([score.shuffled for score in means], np.float64)
        axes.plot(layers, shuffled, "--", color=color, linewidth=1, alpha=0.7, label=f"k = {k}, attention shuffled")
    if report.feature_layer:
        axes.axvline(report.feature_layer, color="grey", linestyle=":", label=f"stage 1 reads layer {report.feature_layer}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer of the vision tower")
    axes.set_ylabel("KNN consistency score")
    count = len(report.pictures)
    axes.set_title(
        f"Do tokens with like features get like attention?\n{KINDS[report.attention]}, mean of {count} "
        f"picture{'s' if count > 1 else ''}",
        fontsize=11,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(file, dpi=_DPI)


def draw_maps(picture: Image.Image, name: str, attention: str, maps: Sequence[LayerMap], file: Path) -> None:
    """The picture, and beside it the tokens of each layer, coloured by the rank of their attention."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * (len(maps) + 1), 4), layout="constrained")
    panels = figure.subplots(1, len(maps) + 1)
    panels[0].imshow(np.asarray(picture))
    panels[0].set_title(ascii(name)[1:-1], parse_math=False, fontsize=10)
    for panel, item in zip(panels[1:], maps, strict=True):
        x, y = item.places.T
        dots = panel.scatter(x, y, c=item.ranks, cmap="viridis", vmin=0, vmax=1, s=14, linewidths=0)
        panel.set_title(f"layer {item.layer}, {len(item.ranks)} tokens", fontsize=10)
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    bar = figure.colorbar(dots, ax=list(panels), shrink=0.85)
    bar.set_label(f"rank of {KINDS[attention]}")
    bar.set_ticks([0, 0.5, 1], labels=["least", "median", "most"])
    figure.suptitle("t-SNE of the tower's features", fontsize=11)
    figure.savefig(file, dpi=_DPI)
