"""What is drawn: a panel for every bundle and budget, and in it a map of every view of every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from PIL import Image

from sts_export.generation.result import VisualTokens
from sts_export.media.prepared import View


class Fate(IntEnum):
    """What became of a visual token."""

    DROPPED_BEFORE = 0
    DROPPED_INSIDE = 1
    KEPT = 2
    MERGED = 3


@dataclass(frozen=True)
class TokenMap:
    """A view of a picture under its grid of ``columns x rows`` tokens, numbered row by row from 0.

    Args:
        name: the picture's, and the view's where it has several.
        picture: what the vision tower saw.
        kept_stage1: tokens that enter the LLM.
        kept_stage2: those of them that the upper layers have, too.
        merged_into: for tokens that were merged into one that enters the LLM, which.
    """

    name: str
    picture: Image.Image
    columns: int
    rows: int
    kept_stage1: frozenset[int]
    kept_stage2: frozenset[int]
    merged_into: Mapping[int, int] = field(default_factory=dict)

    @property
    def fates(self) -> list[Fate]:
        """Of every token."""
        return [self._fate(token) for token in range(self.columns * self.rows)]

    def _fate(self, token: int) -> Fate:
        if token in self.kept_stage1:
            return Fate.KEPT if token in self.kept_stage2 else Fate.DROPPED_INSIDE
        return Fate.MERGED if token in self.merged_into else Fate.DROPPED_BEFORE

    @property
    def targets(self) -> dict[int, list[int]]:
        """Tokens that others were merged into, ascending, and these."""
        found: dict[int, list[int]] = {}
        for token, target in sorted(self.merged_into.items(), key=lambda pair: (pair[1], pair[0])):
            found.setdefault(target, []).append(token)
        return found

    @property
    def counts(self) -> VisualTokens:
        """Of this view alone."""
        return VisualTokens(self.columns * self.rows, len(self.kept_stage1), len(self.kept_stage2))


@dataclass(frozen=True)
class Panel:
    """One answer: a column of what is drawn.

    Args:
        title: method and budget.
        details: a line each: stages, bundle, model.
        counts: of all pictures.
        cls_tokens: how many of those that enter the LLM are CLS tokens, which no map shows.
        pictures: for every picture, its views.
        answer: of the model.
    """

    title: str
    details: tuple[str, ...]
    counts: VisualTokens
    cls_tokens: int
    pictures: tuple[tuple[TokenMap, ...], ...]
    answer: str

    @property
    def maps(self) -> list[TokenMap]:
        """All of them, in order."""
        return [view for views in self.pictures for view in views]


def rows_of(panels: Sequence[Panel]) -> list[tuple[int, int]]:
    """(picture, view) of every row; a panel whose model sees fewer views of a picture leaves its place empty."""
    pictures = max((len(panel.pictures) for panel in panels), default=0)
    views = [max(len(panel.pictures[n]) for panel in panels if n < len(panel.pictures)) for n in range(pictures)]
    return [(picture, view) for picture, count in enumerate(views) for view in range(count)]


def map_at(panel: Panel, row: tuple[int, int]) -> TokenMap | None:
    """What a panel has in a row."""
    picture, view = row
    if picture < len(panel.pictures) and view < len(panel.pictures[picture]):
        return panel.pictures[picture][view]
    return None


def map_view(
    view: View, name: str, kept_stage1: Sequence[int], kept_stage2: Sequence[int], merged_into: Sequence[int] | None
) -> TokenMap:
    """A view's own part of what was kept and merged.

    Args:
        name: of the view.
        kept_stage1, kept_stage2: numbers among the picture's tokens; those outside the view are left out.
        merged_into: for every token of the picture, the number of the one that it was merged into, or -1; None: nothing was.
    """
    inside = range(view.first, view.first + view.columns * view.rows)
    kept = frozenset(token - view.first for token in kept_stage1 if token in inside)
    survived = frozenset(token - view.first for token in kept_stage2 if token in inside)
    merged = {
        token - view.first: merged_into[token] - view.first
        for token in (inside if merged_into is not None else ())
        if merged_into is not None and merged_into[token] in inside and token - view.first not in kept
    }
    return TokenMap(name, view.picture, view.columns, view.rows, kept, survived, merged)


def name_views(picture: str, views: int) -> list[str]:
    """Of a picture's views: where there are several, the first is the whole picture."""
    return [picture] if views == 1 else [f"{picture}, {'whole' if view == 0 else 'tiles'}" for view in range(views)]


def hue(number: int) -> int:
    """Degrees; neighbouring numbers are far apart."""
    return round(number * 137.5) % 360
