"""docs/architecture.md shows the layers that are checked."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checked() -> list[str]:
    """Layers of .importlinter, from the top; those beside each other in alphabetical order."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / ".importlinter", encoding="utf-8")
    return [ordered(line) for line in settings["importlinter:contract:layers"]["layers"].split("\n") if line]


def shown() -> list[str]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("## Layers")[1].split("```")[1]
    return [ordered(re.split(r" {2,}", line)[0]) for line in block.splitlines() if line]


def ordered(layer: str) -> str:
    return " | ".join(sorted(re.split(r"\s*[|:]\s*", layer.strip())))


def test_the_page_shows_the_layers() -> None:
    assert shown() == checked()
    assert len(shown()) > 10
