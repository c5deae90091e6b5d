"""The page: one HTML file with pictures, script and style in it, which asks no network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from PIL import Image

from sts_export.analysis.kept.panels import Fate, Panel, TokenMap, hue
from sts_export.analysis.kept.sheet import MEANINGS

_LARGEST = 1024  # pixels of a picture's long side in the page
# Class, fates that it covers, and how far inside the token: frames stand apart, darkness has no gaps.
_LAYERS = (
    ("before", (Fate.DROPPED_BEFORE, Fate.MERGED), 0.0),
    ("inside", (Fate.DROPPED_INSIDE,), 0.05),
    ("kept", (Fate.KEPT,), 0.05),
)


def make_page(panels: Sequence[Panel], prompt: str) -> str:
    """HTML of all panels; the slider is the same for all of them.  Prompt, answers and names are text whatever is in them."""
    style, script = _file("page.css"), _file("page.js")
    pictures = _Pictures()
    shown = "\n".join(_panel(panel, number, pictures) for number, panel in enumerate(panels))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    return Template(_file("page.html")).substitute(
        policy=policy,
        title=escape(f"Visual tokens kept: {' '.join(prompt.split())[:80]}"),
        style=style,
        script=script,
        pictures="\n".join(pictures.symbols),
        prompt=escape(prompt),
        legend="\n".join(_legend(panels)),
        panels=shown,
    )


class _Pictures:
    """Every picture once, whatever the number of panels that show it."""

    def __init__(self) -> None:
        self.symbols: list[str] = []
        self._names: dict[tuple[tuple[int, int], bytes], str] = {}

    def name(self, picture: Image.Image) -> str:
        """Id of the picture's symbol."""
        known = (picture.size, hashlib.sha256(picture.tobytes()).digest())
        if known not in self._names:
            self._names[known] = f"picture-{len(self._names) + 1}"
            self.symbols.append(_symbol(self._names[known], picture))
        return self._names[known]


def _symbol(name: str, picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_LARGEST, _LARGEST))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<symbol id="{name}" viewBox="0 0 1 1" preserveAspectRatio="none">'
        f'<image width="1" height="1" preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/></symbol>'
    )


def _panel(panel: Panel, number: int, pictures: _Pictures) -> str:
    counts = panel.counts
    cls_tokens = f" ({panel.cls_tokens} CLS)" if panel.cls_tokens else ""
    numbers = " → ".join(
        f'<span class="n{stage}">{count}</span>' for stage, count in enumerate((counts.total, counts.stage1, counts.stage2))
    )
    lines = [
        f'<article aria-labelledby="panel-{number}">',
        f'<h2 id="panel-{number}">{escape(panel.title)}</h2>',
        f'<p class="counts">{numbers} visual tokens{cls_tokens}</p>',
        *(f'<p class="details">{escape(detail)}</p>' for detail in panel.details),
        *(_figure(view, panel.title, pictures) for view in panel.maps),
        '<p class="label">Answer:</p>',
        f'<blockquote class="answer" dir="auto">{escape(panel.answer) or "(nothing)"}</blockquote>',
        "</article>",
    ]
    return "\n".join(lines)


def _figure(view: TokenMap, title: str, pictures: _Pictures) -> str:
    counts = view.counts
    said = f"{view.name}: {counts.total} → {counts.stage1} → {counts.stage2}"
    fates = view.fates
    layers = [
        f'<path class="{kind}" d="{_squares(view, [token for token, own in enumerate(fates) if own in group], inset)}"/>'
        for kind, group, inset in _LAYERS
    ]
    for number, (target, sources) in enumerate(view.targets.items()):
        colour = f"hsl({hue(number)} 85% 55%)"
        layers.append(f'<path class="merged" fill="{colour}" d="{_squares(view, sources, 0)}"/>')
        layers.append(f'<path class="target" stroke="{colour}" d="{_squares(view, [target], 0.2)}"/>')
    attributes = {
        "viewBox": f"0 0 {view.columns} {view.rows}",
        "tabindex": "0",
        "role": "group",
        "aria-label": f"{title}; {said} tokens; arrow keys go from token to token",
        "data-columns": str(view.columns),
        "data-fates": "".join(str(int(fate)) for fate in fates),
        "data-merged": " ".join(f"{token}>{target}" for token, target in sorted(view.merged_into.items())),
    }
    written = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
    lines = [
        "<figure>",
        f'<svg class="tokens" {written}>',
        f'<use href="#{pictures.name(view.picture)}" width="{view.columns}" height="{view.rows}"/>',
        *layers,
        "</svg>",
        f'<figcaption><span dir="auto">{escape(said)}</span><p class="said" aria-live="polite"></p></figcaption>',
        "</figure>",
    ]
    return "\n".join(lines)


def _squares(view: TokenMap, tokens: Iterable[int], inset: float) -> str:
    """A path around every token."""
    side = round(1 - 2 * inset, 2)
    squares = []
    for token in tokens:
        row, column = divmod(token, view.columns)
        squares.append(f"M{column + inset:g} {row + inset:g}h{side:g}v{side:g}h-{side:g}z")
    return "".join(squares)


def _legend(panels: Sequence[Panel]) -> list[str]:
    """What there is to see after each stage; the page fades what is not of the stage that it shows."""
    fates = {fate for panel in panels for view in panel.maps for fate in view.fates}
    found = [_legend_entry("at-1", "first", "kept by stage 1")] if fates & {Fate.KEPT, Fate.DROPPED_INSIDE} else []
    for fate, said in MEANINGS.items():
        if fate in fates:
            stages = "at-2" if fate in (Fate.KEPT, Fate.DROPPED_INSIDE) else "at-1 at-2"
            kind = next(kind for kind, group, _ in _LAYERS if fate in group)
            found.append(_legend_entry(stages, kind, said, f"hsl({hue(0)} 85% 55%)" if fate is Fate.MERGED else "none"))
    return found


def _legend_entry(stages: str, kind: str, said: str, tint: str = "none") -> str:
    """A grey token of that kind."""
    square = "M.05 .05h.9v.9h-.9z"
    token = f'<path fill="#bebebe" d="M0 0h1v1h-1z"/><path class="{kind}" d="{square}"/>'
    tinted = f'<path class="merged" fill="{tint}" d="{square}"/>'
    return f'<li class="{stages}"><svg viewBox="0 0 1 1" aria-hidden="true">{token}{tinted}</svg>{escape(said)}</li>'


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return files("sts_export.analysis.kept").joinpath(name).read_text(encoding="utf-8")
