"""The page from hand-made records."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from scripts.demo_results.markdown import p_value
from scripts.demo_results.page import PAGE, page, records_in
from scripts.demo_results.records import RESULTS, Count, Record, Row, latest_record, write_record
from sts_export.files import replace_json

ROOT = Path(__file__).parents[2]


def row(name: str, budget: int | None, right: int, p: dict[str, float] | None = None, tokens: float = 0.0) -> Row:
    """Of 10 questions; ``tokens`` where the budget is not reached."""
    low, high, share = right / 10 - 0.05, right / 10 + 0.05, right / 10
    kinds = {"color": Count(4, min(right, 4)), "count": Count(6, max(right - 4, 0))}
    keep = (96, 32) if budget else (576, 576)
    own = tokens or float(budget or 576)
    return Row(name, name, budget, keep, own, not tokens, 10, right, share, low, high, share / 0.8, kinds, p or {})


def record(table: str, *rows: Row) -> Record:
    return Record(table, "demo", "2026-01-02", "c", {}, 10, rows)


UNPRUNED = row("unpruned", None, 8)
METHODS = record(
    "methods",
    UNPRUNED,
    row("sts", 128, 8),
    row("sts", 64, 6),
    row("learnpruner", 128, 8, {"sts": 1.0, "random": 0.5}),
    row("learnpruner", 64, 7, {"sts": 0.25, "random": 0.00004}),
    row("fastv", 128, 8, tokens=240.0),
    row("fastv", 64, 4, tokens=192.0),
    row("random", 128, 4, {"sts": 0.0321}),
    row("random", 64, 2, {"sts": 0.0009}),
)
BUDGETS = record("budgets", UNPRUNED, row("sts", 64, 6), row("sts", 32, 5), row("random", 64, 2, {"sts": 0.1}))
ABLATIONS = record("ablations-64", UNPRUNED, row("sts", 64, 6), row("K'/K 0.2", 64, 4, {"sts": 0.625}))
QUANTIZED = record(
    "quantized", row("fp32", None, 8), row("int4", None, 7, {"fp32": 1.0}), row("fp32", 64, 6), row("int4", 64, 6)
)

_METHODS = """
## All methods

10 questions, 2026-01-02, `m.json`. Unpruned: 80.0 % (75.0 to 85.0).

|  | 128 | 64 |
| --- | ---: | ---: |
| `sts` | 80.0 % (100.0 %) | 60.0 % (75.0 %) |
| `learnpruner` | 80.0 % (100.0 %) | 70.0 % (87.5 %) |
| `fastv` | 80.0 % (100.0 %) [240] | 40.0 % (50.0 %) [192] |
| `random` | 40.0 % (50.0 %) | 20.0 % (25.0 %) |

p against `sts` at the same budget:

|  | 128 | 64 |
| --- | ---: | ---: |
| `learnpruner` | 1.000 | 0.250 |
| `random` | 0.032 | 9e-04 |

p of other pairs:

|  | 128 | 64 |
| --- | ---: | ---: |
| `learnpruner` against `random` | 0.500 | 4e-05 |
"""
_BUDGETS = """
## Five methods, more questions

10 questions, 2026-01-02, `b.json`. Unpruned: 80.0 % (75.0 to 85.0).

|  | 64 | 32 |
| --- | ---: | ---: |
| `sts` | 60.0 % (75.0 %) | 50.0 % (62.5 %) |
| `random` | 20.0 % (25.0 %) |  |

By kind of question, at 64:

|  | color | count |
| --- | ---: | ---: |
| `unpruned` | 100.0 % | 66.7 % |
| `sts` | 100.0 % | 33.3 % |
| `random` | 50.0 % | 0.0 % |

p against `sts` at the same budget:

|  | 64 |
| --- | ---: |
| `random` | 0.100 |
"""
_ABLATIONS = """
## Choices of STS at 64

10 questions, 2026-01-02, `a.json`. Unpruned: 80.0 % (75.0 to 85.0).

|  | K, K' | tokens of a layer | accuracy | 95 % interval | relative | p against `sts` |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| unpruned | 576, 576 | 576.0 | 80.0 % | 75.0 to 85.0 | 100.0 % |  |
| sts | 96, 32 | 64.0 | 60.0 % | 55.0 to 65.0 | 75.0 % |  |
| K'/K 0.2 | 96, 32 | 64.0 | 40.0 % | 35.0 to 45.0 | 50.0 % | 0.625 |
"""
_QUANTIZED = """
## Formats of weights

10 questions, 2026-01-02, `q.json`. Unpruned: 80.0 % (75.0 to 85.0).

|  | unpruned | 64 |
| --- | ---: | ---: |
| `fp32` | 80.0 % (100.0 %) | 60.0 % (75.0 %) |
| `int4` | 70.0 % (87.5 %) | 60.0 % (75.0 %) |

p against `fp32` at the same budget:

|  | unpruned |
| --- | ---: |
| `int4` | 1.000 |
"""
ALL = [("m.json", METHODS), ("b.json", BUDGETS), ("a.json", ABLATIONS), ("q.json", QUANTIZED)]


def test_the_page_of_all_tables() -> None:
    head, *sections = page(ALL).split("\n## ")
    assert head.startswith("# ") and "./scripts/evaluate_demo" in head
    assert "\n## " + "\n## ".join(sections) == _METHODS + _BUDGETS + _ABLATIONS + _QUANTIZED


@pytest.mark.parametrize(("left", "section"), [(0, _METHODS), (1, _BUDGETS), (2, _ABLATIONS), (3, _QUANTIZED)])
def test_a_table_without_a_record_has_no_section(left: int, section: str) -> None:
    shorter = page(ALL[:left] + ALL[left + 1 :])
    assert page(ALL).replace(section, "", 1) == shorter
    assert section.splitlines()[1] not in shorter.splitlines()


def test_without_records_the_page_says_so() -> None:
    assert page([]).endswith("\nNothing of it has been measured yet.\n") and "## " not in page([])


def test_the_page_in_the_repository_is_that_of_its_records() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(records_in(ROOT))


def test_lines_are_of_one_screen_but_for_tables() -> None:
    long = [(name.replace(".", "-2026-01-02-cpu16-demo-ablations-64."), one) for name, one in ALL]
    lines = page(long).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / RESULTS).mkdir(parents=True)
    file = write_record(METHODS, tmp_path)
    assert file.name.startswith("2026-01-02-cpu") and file.name.endswith("-demo-methods.json")
    assert records_in(tmp_path) == [(file.name, METHODS)]


def test_the_newest_record_counts(tmp_path: Path) -> None:
    (tmp_path / RESULTS).mkdir(parents=True)
    for date in ("2026-01-02", "2026-02-01", "2025-12-31"):
        one = replace(BUDGETS, date=date)
        replace_json(tmp_path / RESULTS / f"{date}-cpu2-demo-budgets.json", asdict(one))
    assert latest_record("budgets", tmp_path) == (
        "2026-02-01-cpu2-demo-budgets.json",
        replace(BUDGETS, date="2026-02-01"),
    )
    assert latest_record("methods", tmp_path) is None


@pytest.mark.parametrize(("p", "text"), [(None, ""), (1.0, "1.000"), (0.001, "0.001"), (0.00099, "1e-03"), (3e-40, "3e-40")])
def test_small_p_are_powers_of_ten(p: float | None, text: str) -> None:
    assert p_value(p) == text
