"""What pages say of the code is there, and so is what the code cites of the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = sorted(
    file
    for folder in ("sts_export", "graphs", "scripts", "benchmarks", "tests")
    for file in (ROOT / folder).rglob("*.py")
    if file.parent != Path(__file__).parent
)
FOLDERS = "sts_export|graphs|plugins|tests|scripts|benchmarks|docs"
PATH = re.compile(rf"`(?:\./)?((?:{FOLDERS})/[\w./-]*)`")
MODULE = re.compile(r"`(sts_export(?:\.\w+)+)")
CITATION = re.compile(r"(?<![\w/])(docs/[a-z_]+\.md)(?:, \"([^\"]+)\")?")
FOREIGN = "docs/operators.md"  # of onnx-tensorrt


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def is_module(dotted: str) -> bool:
    """Whether it is a module of the package, or something in one; sts_export.graphs lies in graphs/."""
    path = ROOT / dotted.replace("sts_export.graphs", "graphs").replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    inside = path.parent.with_suffix(".py")
    inside = inside if inside.is_file() else path.parent / "__init__.py"
    defined = rf"^(?:(?:def|class) {path.name}\b|{path.name}\b.*=)"
    return inside.is_file() and re.search(defined, inside.read_text(encoding="utf-8"), re.MULTILINE) is not None


def is_heading(page: str, heading: str) -> bool:
    """Whether the page is there, with the heading if one is named."""
    file = ROOT / page
    return file.is_file() and (not heading or f" {heading}\n" in file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_exist(page: Path) -> None:
    paths = PATH.findall(page.read_text(encoding="utf-8"))
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_pages_name_exist(page: Path) -> None:
    names = MODULE.findall(page.read_text(encoding="utf-8"))
    entry_points = {"sts_export.stages", "sts_export.reference_stages"}
    assert [dotted for dotted in names if not is_module(dotted) and dotted not in entry_points] == []


def test_pages_that_the_code_cites_exist_with_their_headings() -> None:
    cited = {(name(file), *citation) for file in CODE for citation in CITATION.findall(file.read_text(encoding="utf-8"))}
    assert cited
    assert [citation for citation in sorted(cited) if citation[1] != FOREIGN and not is_heading(*citation[1:])] == []


def test_the_method_is_cited_where_it_is_written() -> None:
    """docs/method.md; not a document that no reader of the repository has."""
    assert [name(file) for file in CODE if re.search(r"\bMETHOD\b", file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("dotted", "there"),
    [
        ("sts_export.bundle.manifest", True),
        ("sts_export.graphs.decoder.parts", True),
        ("sts_export.bundle.manifest.open_bundle", True),
        ("sts_export.runtime", False),
        ("sts_export.bundle.manifest.no_such_name", False),
    ],
)
def test_modules_are_told_from_what_is_none(dotted: str, there: bool) -> None:
    assert is_module(dotted) is there
