"""The picture: a column for every panel, a row for every view, the answers below, and what the frames mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sts_export.analysis.kept.lettering import font, wrap
from sts_export.analysis.kept.panels import Fate, Panel, TokenMap, map_at, rows_of
from sts_export.analysis.kept.tokens import draw_tokens, token_side
from sts_export.generation.result import VisualTokens

_MARGIN, _GAP = 16, 24
_LEAST_WIDTH = 260  # of a column: its text has to fit
_TITLE, _TEXT = 18, 14  # sizes of letters
_INK, _GREY, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)
_SWATCH = 20
_MOST_PROMPT_LINES, _MOST_TITLE_LINES, _MOST_ANSWER_LINES = 4, 3, 10
MEANINGS = {
    Fate.KEPT: "kept",
    Fate.DROPPED_INSIDE: "dropped inside the LLM, by stage 2",
    Fate.DROPPED_BEFORE: "dropped before the LLM, by stage 1",
    Fate.MERGED: "merged before the LLM into the token with a frame of this colour",
}


@dataclass(frozen=True)
class _Text:
    lines: tuple[str, ...]
    size: int
    colour: tuple[int, int, int]

    @property
    def height(self) -> int:
        return len(self.lines) * _line_height(self.size)


def draw_sheet(panels: Sequence[Panel], prompt: str) -> Image.Image:
    """All panels side by side, RGB on white; views are scaled so that tokens can be told apart and the sheet stays small."""
    wanted = max(240, min(480, 1920 // len(panels)))
    rows = rows_of(panels)
    cells = [[(found, _drawn(found, wanted)) if (found := map_at(panel, row)) else None for panel in panels] for row in rows]
    widths = [
        max([_LEAST_WIDTH, *(cell[1].width for line in cells if (cell := line[number]))]) for number in range(len(panels))
    ]
    width = 2 * _MARGIN + sum(widths) + _GAP * (len(panels) - 1)
    lefts = [_MARGIN + sum(widths[:number]) + _GAP * number for number in range(len(panels))]
    heads = [_head(panel, column) for panel, column in zip(panels, widths, strict=True)]
    answers = [_answer(panel, column) for panel, column in zip(panels, widths, strict=True)]
    question = [_text(f"Prompt: {prompt}", _TEXT, width - 2 * _MARGIN, _MOST_PROMPT_LINES)]
    legend = _legend(panels, width - 2 * _MARGIN)

    captions = _line_height(_TEXT)
    heights = [max(cell[1].height for cell in line if cell) + captions + _MARGIN for line in cells]
    parts = (_height(question), max(map(_height, heads)), sum(heights), max(map(_height, answers)), legend.height)
    sheet = Image.new("RGB", (width, sum(parts) + (len(parts) + 1) * _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _MARGIN
    _write(pen, question, _MARGIN, top)
    top += parts[0] + _MARGIN
    for texts, left in zip(heads, lefts, strict=True):
        _write(pen, texts, left, top)
    top += parts[1] + _MARGIN
    for line, height in zip(cells, heights, strict=True):
        for cell, left, column in zip(line, lefts, widths, strict=True):
            if cell:
                view, drawn = cell
                sheet.paste(drawn, (left, top))
                caption = _text(f"{view.name}: {in_words(view.counts)}", _TEXT, column, 1, _GREY)
                _write(pen, [caption], left, top + drawn.height + 2)
        top += height
    for texts, left in zip(answers, lefts, strict=True):
        _write(pen, texts, left, top)
    sheet.paste(legend, (_MARGIN, top + parts[3] + _MARGIN))
    return sheet


def in_words(counts: VisualTokens) -> str:
    """Before pruning, after stage 1, after stage 2."""
    return f"{counts.total} -> {counts.stage1} -> {counts.stage2}"


def all_in_words(panel: Panel) -> str:
    """Those of all pictures, as `show` prints them."""
    return f"{in_words(panel.counts)} visual tokens" + (f" ({panel.cls_tokens} CLS)" if panel.cls_tokens else "")


def _drawn(view: TokenMap, wanted: int) -> Image.Image:
    return draw_tokens(view, token_side(view.columns, view.rows, wanted))


def _head(panel: Panel, width: int) -> list[_Text]:
    return [
        _text(panel.title, _TITLE, width, _MOST_TITLE_LINES),
        _text(all_in_words(panel), _TEXT, width, _MOST_TITLE_LINES),
        *(_text(detail, _TEXT, width, _MOST_TITLE_LINES, _GREY) for detail in panel.details),
    ]


def _answer(panel: Panel, width: int) -> list[_Text]:
    shown = panel.answer or "(nothing)"
    return [_text("Answer:", _TEXT, width, 1, _GREY), _text(shown, _TEXT, width, _MOST_ANSWER_LINES)]


def _legend(panels: Sequence[Panel], width: int) -> Image.Image:
    """A line for each fate that a token has."""
    fates = {fate for panel in panels for view in panel.maps for fate in view.fates}
    entries = [(_swatch(fate), _text(said, _TEXT, width - _SWATCH - 8, 2)) for fate, said in MEANINGS.items() if fate in fates]
    heights = [max(_SWATCH, text.height) + 6 for _, text in entries]
    legend = Image.new("RGB", (width, max(1, sum(heights))), _PAPER)
    pen, top = ImageDraw.Draw(legend), 0
    for (swatch, text), height in zip(entries, heights, strict=True):
        legend.paste(swatch, (0, top))
        _write(pen, [text], _SWATCH + 8, top)
        top += height
    return legend


def _swatch(fate: Fate) -> Image.Image:
    """A grey token of that fate; a merged one stands beside its target, which is cut off."""
    grey = Image.new("RGB", (2 * _SWATCH, _SWATCH), (190, 190, 190))
    kept1 = frozenset({0, 1} if fate in (Fate.KEPT, Fate.DROPPED_INSIDE) else {1})
    kept2 = frozenset({0, 1} if fate is Fate.KEPT else {1})
    sample = TokenMap("", grey, 2, 1, kept1, kept2, {0: 1} if fate is Fate.MERGED else {})
    return draw_tokens(sample, _SWATCH).crop((0, 0, _SWATCH, _SWATCH))


def _line_height(size: int) -> int:
    return round(1.35 * size)


def _text(text: str, size: int, width: int, most: int, colour: tuple[int, int, int] = _INK) -> _Text:
    return _Text(tuple(wrap(text, size, width, most)), size, colour)


def _height(texts: Sequence[_Text]) -> int:
    return sum(text.height for text in texts)


def _write(pen: ImageDraw.ImageDraw, texts: Sequence[_Text], left: int, top: int) -> None:
    for text in texts:
        for line in text.lines:
            pen.text((left, top), line, fill=text.colour, font=font(text.size))
            top += _line_height(text.size)
