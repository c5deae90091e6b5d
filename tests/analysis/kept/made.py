"""Panels that no model has made."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from PIL import Image

from sts_export.analysis.kept.panels import Panel, TokenMap
from sts_export.generation.result import VisualTokens

GREY = (200, 200, 200)
HOSTILE = """</q><script>alert("1")</script> '&amp; <img src=x onerror=alert(2)> é 漢字"""


def token_map(
    columns: int = 4,
    rows: int = 3,
    kept1: Collection[int] = (1, 2, 7),
    kept2: Collection[int] = (2,),
    merged: Mapping[int, int] | None = None,
    name: str = "cat.jpg",
    colour: tuple[int, int, int] = GREY,
) -> TokenMap:
    picture = Image.new("RGB", (columns * 14, rows * 14), colour)
    return TokenMap(name, picture, columns, rows, frozenset(kept1), frozenset(kept2), merged or {})


def panel(*views: TokenMap, title: str = "sts, budget 2", answer: str = "A cat.", cls_tokens: int = 0) -> Panel:
    """Of one picture."""
    counts = [view.counts for view in views]
    total = VisualTokens(*(sum(getattr(one, name) for one in counts) for name in ("total", "stage1", "stage2")))
    return Panel(title, ("repulsion before the LLM, none inside it", "cat-b2 (llava)"), total, cls_tokens, (views,), answer)
