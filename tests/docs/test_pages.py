"""Links of the documentation lead somewhere, and pages keep to their form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "plugins", "scripts", "sts_export")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
METHODS = ROOT / "docs" / "methods"
# The project's own pages; those beside code have longer lines.
OWN = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs", METHODS)]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
README_LIMIT = 8 << 10
LINE_LIMIT = 120


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(text: str) -> list[str]:
    """Targets of the links of a page, without its code."""
    return [target for target in LINK.findall(FENCE.sub("", text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return True
    return bool(anchor) and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page.read_text(encoding="utf-8")) if broken(page, target)] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(readme)}
    others = [page for page in OWN if page.parent != METHODS]  # those have an index of their own
    assert sorted(name(page) for page in others if page.resolve() not in linked and page.name != "README.md") == []


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= README_LIMIT


def test_the_readme_says_how_to_run_the_checks() -> None:
    assert "./scripts/test" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", OWN, ids=name)
def test_lines_are_of_one_screen(page: Path) -> None:
    """But for rows of tables, which cannot be broken."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > LINE_LIMIT and not line.startswith("|")] == []


@pytest.mark.parametrize("target", ["docs/none.md", "#no-such-heading", "docs/method.md#no-such-heading", "../outside.md"])
def test_a_broken_link_is_noticed(target: str) -> None:
    assert broken(ROOT / "README.md", target)


def test_links_in_code_are_no_links() -> None:
    assert links("[a](b.md)\n```\n[c](d.md)\n```\n[e](https://example.org) [f](g.md#h)\n") == ["b.md", "g.md#h"]
