"""Every method has its page, with the stages, settings and defaults that the code has."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks.selection.table import rows
from sts_export.pruning.methods import METHODS, Method
from sts_export.pruning.registry import find_stage1, find_stage2
from sts_export.pruning.settings import split_spec

ROOT = Path(__file__).parents[2]
INDEX = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
FOLDER = ROOT / "docs" / "methods"
EVERYWHERE = ["Idea", "Formula", "Settings", "Cost", "When to pick it"]
CHOICES = ["What was chosen here", "Where it differs from its public code"]

all_methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def page(method: Method) -> str:
    return (FOLDER / f"{method.name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def settings(method: Method) -> set[tuple[str, str, str]]:
    """(stage, setting, default) of the method's own stages; what the method says goes before a stage's default."""
    found = set()
    for spec, find in ((method.stage1, find_stage1), (method.stage2, find_stage2)):
        name, given = split_spec(spec)
        found |= {(name, field.name, given.get(field.name, written(field.default))) for field in fields(find(name))}
    return found


def test_there_is_a_page_for_every_method_and_no_other() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == {method.name for method in METHODS}


def test_the_index_has_every_method_in_order_with_its_page() -> None:
    rows = re.findall(r"^\| \[`([\w-]+)`\]\(methods/([\w-]+)\.md\) \|", INDEX, re.MULTILINE)
    assert rows == [(method.name, method.name) for method in METHODS]


@all_methods
def test_the_index_says_what_a_method_is(method: Method) -> None:
    line = next(line for line in INDEX.splitlines() if line.startswith(f"| [`{method.name}`]"))
    stage1, stage2, ratio, layer = [cell.strip() for cell in line.split("|")[2:6]]
    assert stage1.startswith("none" if method.stage1 == "keep-all" else f"`{split_spec(method.stage1)[0]}`")
    drops_inside = method.stage2 != "keep-all" and method.ratio < 1
    assert stage2.startswith(f"`{split_spec(method.stage2)[0]}`" if drops_inside else "none")
    shares = {"keep-all": ("", "1")}.get(method.stage1, ("1/3",) if drops_inside else ("1",))
    assert ratio in shares
    if drops_inside:
        rules = {"2": 2, "T // 2 [1]": 16, "T // 2": 20, "3T / 8": 15}  # of 40 layers
        assert rules[layer] == method.prune_layer(40)


@all_methods
def test_a_page_has_all_parts(method: Method) -> None:
    text = page(method)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [heading for heading in headings if heading not in CHOICES] == EVERYWHERE
    assert len(headings) == len(EVERYWHERE) + 1
    assert text.startswith(f"# {method.name}\n\n`--method {method.name}")


@all_methods
def test_the_idea_is_three_sentences(method: Method) -> None:
    sentences = re.findall(r"[.!?](?=\s)", section(page(method), "Idea") + "\n")
    assert len(sentences) == 3


@all_methods
def test_settings_are_those_of_the_stages(method: Method) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| `([^`]+)` \|", section(page(method), "Settings"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == settings(method)


@all_methods
def test_every_stage_that_a_method_may_take_is_named(method: Method) -> None:
    text = page(method)
    for spec in (*method.stage1_choices, method.stage2):
        name, given = split_spec(spec)
        assert f"`{name}`" in text
        assert all(f"`{value}`" in text for value in given.values())


def test_times_are_those_of_the_newest_record() -> None:
    records = sorted((ROOT / "benchmarks" / "results").glob("*-selection.json"))
    table = [line for line in section(INDEX, "What choosing costs").splitlines() if line.startswith("|")]
    assert table[2:] == (rows(json.loads(records[-1].read_text(encoding="utf-8")))[2:] if records else [])
