"""docs/errors.md names tests that exist, and every case of the command line's wrong requests."""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRONG_REQUESTS = ("tests/cli/test_wrong_requests.py", "tests/cli/test_wrong_runs.py")


def rows(page: str) -> list[tuple[str, list[str]]]:
    """(error, names of tests) of every row of every table of the page."""
    found = []
    for line in page.splitlines():
        cells = line.strip().strip("|").split(" | ")
        if line.startswith("| ") and len(cells) == 2 and cells[1].strip() != "test":
            found.append((cells[0].strip(), re.findall(r"`([^`]+)`", cells[1])))
    return found


def cases(file: Path) -> set[str]:
    """Keys of the dictionary ERRORS of a test file."""
    return {
        key.value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(value, ast.Tuple)
    }


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(name: str, known: set[str]) -> bool:
    """Whether no test bears the name: a case, a folder, a file, or FILE::FUNCTION; `*` stands for any rest."""
    if not name.startswith("tests/"):
        return not fnmatch.filter(known, name)
    path, _, function = name.partition("::")
    file = ROOT / path
    if not function:
        return not (any(file.glob("test_*.py")) if file.is_dir() else file.is_file() and functions(file))
    return not file.is_file() or not fnmatch.filter(functions(file), function)


TABLE = rows((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
CASES = {case for file in WRONG_REQUESTS for case in cases(ROOT / file)}


@pytest.mark.parametrize(("error", "names"), TABLE, ids=[error[:60] for error, _ in TABLE])
def test_every_test_of_the_table_exists(error: str, names: list[str]) -> None:
    assert names, "a row without a test"
    assert [name for name in names if missing(name, CASES)] == []


def test_every_case_has_its_place_in_the_table() -> None:
    patterns = [name for _, names in TABLE for name in names if not name.startswith("tests/")]
    assert len(CASES) > 100
    assert sorted(case for case in CASES if not any(fnmatch.fnmatch(case, pattern) for pattern in patterns)) == []


@pytest.mark.parametrize(
    "name",
    [
        "no-such-case",
        "no-such-*",
        "tests/none",
        "tests/cli/test_none.py",
        f"{WRONG_REQUESTS}::test_none",
        f"{WRONG_REQUESTS}::test_none_*",
    ],
)
def test_a_name_without_a_test_is_noticed(name: str) -> None:
    assert missing(name, CASES)
