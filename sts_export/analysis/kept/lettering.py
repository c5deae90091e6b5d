"""Text in pictures, in the font that comes with PIL."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Of that many pixels."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    r"""What the font has: ASCII; everything else is written as an escape (``\xe9``), but for ends of lines."""
    lines = text.encode("ascii", "backslashreplace").decode().replace("\t", " ").splitlines()
    return "\n".join("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line) for line in lines)


def wrap(text: str, size: int, width: int, most: int) -> list[str]:
    """Lines of at most ``width`` pixels; of more than ``most`` lines the rest is left out, which ``...`` tells."""
    lines: list[str] = []
    for paragraph in plain(text).split("\n"):
        lines += _wrap_paragraph(paragraph, size, width, most + 1 - len(lines))
        if len(lines) > most:
            last = lines[most - 1]
            while last and font(size).getlength(f"{last}...") > width:
                last = last[:-1]
            return [*lines[: most - 1], f"{last}..."]
    return lines


def _wrap_paragraph(text: str, size: int, width: int, most: int) -> list[str]:
    """Broken at spaces, and inside words that are longer than a line."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if font(size).getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while len(lines) < most and word and font(size).getlength(word) > width:
            fitting = _fitting(word, size, width)
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
        if len(lines) >= most:
            return lines[:most]
    return [*lines, line]


def _fitting(word: str, size: int, width: int) -> int:
    """How many of its letters fit, at least 1."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font(size).getlength(word[:middle]) <= width else (low, middle - 1)
    return low
