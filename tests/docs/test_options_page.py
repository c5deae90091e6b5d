"""docs/options.md has every option of every command."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from scripts.options_page import page
from sts_export.cli import COMMANDS

OPTIONS = Path(__file__).parents[2] / "docs" / "options.md"


def test_the_page_is_up_to_date() -> None:
    assert OPTIONS.read_text(encoding="utf-8") == page(), "make it anew: python -m scripts.options_page > docs/options.md"


def test_every_option_of_help_is_on_the_page() -> None:
    """By another way than the page is made: the text of --help."""
    sections = dict(zip(COMMANDS, OPTIONS.read_text(encoding="utf-8").split("\n## ")[1:], strict=True))
    for command, section in sections.items():
        shown = set(re.findall(r"--[a-z0-9-]+", import_module(f"sts_export.cli.{command}").make_parser().format_usage()))
        listed = {name for row in re.findall(r"^\| (.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(--.*?)`", row)}
        assert listed == shown - {"--version"}, command
