"""What was found: per picture and layer, as JSON and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

KINDS = {"cls_attention": "attention of CLS", "received_attention": "attention received"}


@dataclass(frozen=True)
class Score:
    """Of one layer for one k; None where there is none.  ``shuffled``: of the same attention, shuffled among the tokens."""

    score: float | None
    shuffled: float | None


@dataclass(frozen=True)
class PictureScores:
    """One picture.

    Args:
        picture: the file's name.
        tokens: of each crop.
        layers: scores of layer 1 ... T, each with one :class:`Score` per k; means over the crops that have one.
        map: file with the picture's t-SNE, or None.
    """

    picture: str
    tokens: tuple[int, ...]
    layers: tuple[tuple[Score, ...], ...]
    map: str | None = None


@dataclass(frozen=True)
class AnalysisReport:
    """All pictures.

    Args:
        bundle, checkpoint: folders.
        attention: a key of ``KINDS``.
        feature_layer: the layer that stage 1 reads.
        k: numbers of neighbours.
        pictures: in the order of their names.
        skipped: names of what is no picture.
        notes: why a picture has no score or no t-SNE.
    """

    bundle: str
    checkpoint: str
    attention: str
    feature_layer: int
    k: tuple[int, ...]
    pictures: tuple[PictureScores, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """T."""
        return len(self.pictures[0].layers)

    def mean(self, layer: int, place: int) -> tuple[Score, int]:
        """Over the pictures that have a score in ``layer`` (from 1) for k[place], and how many these are."""
        scores = [picture.layers[layer - 1][place] for picture in self.pictures]
        return mean_score(scores), sum(score.score is not None for score in scores)

    def to_json(self) -> dict[str, Any]:
        layers = []
        for layer in range(1, self.num_layers + 1):
            means = {str(k): self.mean(layer, place) for place, k in enumerate(self.k)}
            found = {k: {**asdict(score), "pictures": count} for k, (score, count) in means.items()}
            layers.append({"layer": layer, "k": found})
        pictures = [
            {
                "picture": item.picture,
                "tokens": item.tokens,
                "tsne": item.map,
                "layers": [{str(k): asdict(score) for k, score in zip(self.k, row, strict=True)} for row in item.layers],
            }
            for item in self.pictures
        ]
        return {
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "attention": self.attention,
            "feature_layer": self.feature_layer,
            "k": self.k,
            "layers": layers,
            "pictures": pictures,
            "skipped": self.skipped,
            "notes": self.notes,
        }


def mean_score(scores: Sequence[Score]) -> Score:
    """Of those that have one."""
    known = [(item.score, item.shuffled) for item in scores if item.score is not None and item.shuffled is not None]
    if not known:
        return Score(None, None)
    score, shuffled = np.mean(known, axis=0)
    return Score(float(score), float(shuffled))


def format_report(report: AnalysisReport) -> str:
    """A table for people: of each k the score, and in brackets that of shuffled attention."""
    lines = [
        f"KNN consistency of features and {KINDS[report.attention]}, mean of {len(report.pictures)} picture(s) "
        "(in brackets: of the same attention, shuffled)",
        f"{'layer':>5}  " + "".join(f"{f'k = {k}':<18}" for k in report.k).rstrip(),
    ]
    for layer in range(1, report.num_layers + 1):
        cells = [_cell(*report.mean(layer, place), len(report.pictures)) for place in range(len(report.k))]
        mark = "<- stage 1 reads this layer" if layer == report.feature_layer else ""
        lines.append(f"{layer:>5}  {''.join(f'{cell:<18}' for cell in cells)}{mark}".rstrip())
    if report.skipped:
        lines.append(f"skipped, no pictures: {_some(report.skipped)}")
    return "\n".join([*lines, *report.notes])


def _cell(score: Score, count: int, pictures: int) -> str:
    if score.score is None:
        return "none"
    return f"{score.score:.3f} ({score.shuffled:.3f})" + (f" of {count}" if count < pictures else "")


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(ascii(name)[1:-1] for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
