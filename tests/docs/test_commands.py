"""Commands in the pages are commands that the command line takes, and files that they start are there."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from sts_export.cli.commands import exists, load
from sts_export.errors import RequestError
from sts_export.generation.next_token.logprobs import TokenLogprobs
from sts_export.generation.result import GenerationResult, KvCacheBytes, Timings, VisualTokens

ROOT = Path(__file__).parents[2]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "plugins", "scripts", "benchmarks") for page in (ROOT / folder).rglob("*.md")),
    ]
)
LINES = [
    (page.relative_to(ROOT).as_posix(), words)
    for page in PAGES
    for block in CONSOLE.findall(page.read_text(encoding="utf-8"))
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]


def parse(words: list[str]) -> None:
    """As `sts-export WORDS` would.

    Raises:
        RequestError: it would be refused.
    """
    command, arguments = (words[0], words[1:]) if words and exists(words[0]) else ("export", words)
    load(command).make_parser().parse_args(arguments)


@pytest.mark.parametrize(("page", "words"), [line for line in LINES if line[1][0] == "sts-export"])
def test_commands_are_taken(page: str, words: list[str]) -> None:
    parse(words[1:])


@pytest.mark.parametrize(("page", "words"), [line for line in LINES if "scripts/" in line[1][0]])
def test_scripts_are_there(page: str, words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize("words", [["--bugdet", "64", "--model", "x"], ["run", "x"], ["paint", "x"]])
def test_a_command_that_is_none_is_noticed(words: list[str]) -> None:
    with pytest.raises(RequestError):
        parse(words)


def test_every_field_of_an_answer_as_json_is_on_the_page() -> None:
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    section = usage.split("\n## `run --json`\n")[1].split("\n## ")[0]
    assert {field.name for field in fields(GenerationResult)} <= set(re.findall(r"`(\w+)`", section))
    for part in (VisualTokens, Timings, KvCacheBytes, TokenLogprobs):
        assert f"{{{', '.join(field.name for field in fields(part))}}}" in " ".join(section.split())
