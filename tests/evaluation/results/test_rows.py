"""Comparisons, tables and plots of rows that are made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sts_export.errors import OutputError, RequestError
from sts_export.evaluation.results.comparing import compare, mean_relative
from sts_export.evaluation.results.rows import Row
from sts_export.evaluation.results.saving import save_plot, save_tables
from sts_export.evaluation.results.statistics import mean_interval
from sts_export.evaluation.results.tables import to_json, to_markdown


def row(bundle: str, budget: str, scores: list[float], *, unpruned: bool = False, task: str = "demo", **changes: Any) -> Row:
    units = {str(number): ("a" if number < 2 else "b", score) for number, score in enumerate(scores)}
    accuracy, interval = sum(scores) / len(scores), mean_interval(scores)
    percent = (100 * interval[0], 100 * interval[1])
    made = Row(
        bundle,
        "sts",
        budget,
        (6, 2),
        task,
        unpruned,
        units,
        accuracy,
        interval,
        100 * accuracy,
        "accuracy",
        percent,
        {},
        4.0,
        10.0,
    )
    return replace(made, **changes)


WHOLE = row("whole", "100%", [1, 1, 1, 1, 0], unpruned=True)
ROWS = [WHOLE, row("b", "64", [1, 1, 0, 1, 1]), row("b", "32", [0, 0, 0, 1, 0])]


def test_relative_to_the_unpruned_row() -> None:
    assert [one.relative for one in compare(ROWS)] == pytest.approx([1.0, 1.0, 0.25])
    assert [one.unpruned for one in compare(ROWS)] == ["whole@100%"] * 3
    assert [one.relative for one in compare(ROWS[1:])] == [None, None]


def test_the_unpruned_row_of_the_own_bundle_goes_first() -> None:
    own = row("b", "100%", [1, 0, 0, 1, 0], unpruned=True)
    assert [one.unpruned for one in compare([WHOLE, ROWS[1], own])] == ["whole@100%", "b@100%", "b@100%"]


def test_relative_is_of_the_score_that_papers_print() -> None:
    mme = [replace(WHOLE, score=1500.0), replace(ROWS[1], score=1200.0)]
    assert compare(mme)[1].relative == pytest.approx(0.8)


def test_mcnemar_counts_pairs() -> None:
    first, second, third = compare(ROWS)
    assert (first.base, first.difference, first.p) == ("whole@100%", None, None)
    assert (second.only_base, second.only_this, second.p, second.difference) == (1, 1, 1.0, 0)
    assert (third.only_base, third.only_this, third.p) == (3, 0, 0.25)
    assert third.difference == pytest.approx(-0.6)
    assert third.interval is not None and third.interval[0] <= -0.6 <= third.interval[1]


def test_another_base() -> None:
    against = compare(ROWS, "b@64")
    assert [one.base for one in against] == ["b@64"] * 3
    assert (against[0].only_base, against[0].only_this) == (1, 1)
    with pytest.raises(RequestError, match=r"several rows are 'b': choose one of whole@100%, b@64, b@32"):
        compare(ROWS, "b")
    with pytest.raises(RequestError, match="no row is 'c'"):
        compare(ROWS, "c")


def test_scores_between_right_and_wrong_have_no_mcnemar() -> None:
    against = compare([WHOLE, row("b", "64", [0.3, 1, 1, 1, 0])])[1]
    assert (against.p, against.only_base) == (None, None)
    assert against.difference == pytest.approx(-0.14)


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(RequestError, match="were asked other questions"):
        compare([WHOLE, row("b", "64", [1, 1])])


def test_the_mean_over_tasks() -> None:
    second = [
        replace(WHOLE, task="pope", score=80.0),
        replace(ROWS[1], task="pope", score=60.0),
        replace(ROWS[2], task="gqa"),  # without an unpruned row
    ]
    assert mean_relative([*ROWS, *second]) == pytest.approx({"whole@100%": 100, "b@64": 100 * (1 + 0.75) / 2})


def test_json() -> None:
    (_, entry, _) = to_json(ROWS, compare(ROWS))["rows"]
    assert json.loads(json.dumps(entry)) == entry
    assert (entry["bundle"], entry["budget"], entry["task"], entry["asked"], entry["right"]) == ("b", "64", "demo", 5, 4)
    assert (entry["accuracy"], entry["relative"], entry["mcnemar_p"]) == (0.8, 1.0, 1.0)
    assert entry["low"] < 0.8 < entry["high"]
    assert entry["kinds"] == {"a": {"asked": 2, "right": 2, "accuracy": 1.0}, "b": {"asked": 3, "right": 2, "accuracy": 2 / 3}}


def test_markdown() -> None:
    lines = to_markdown(ROWS, compare(ROWS)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| whole | sts | 100% | demo | 5 | 80.0 % | 37.6 to 96.4 | 100.0 % |  |  | 4.0 | 10 ms |")
    assert "| 25.0 % | -60.0 (" in lines[4] and "| 0.250 |" in lines[4]


def test_a_score_of_its_own_has_columns() -> None:
    rows = [replace(WHOLE, score=1510.7, score_name="perception", score_interval=(1480.0, 1540.04))]
    header, _, line = to_markdown(rows, compare(rows)).splitlines()
    assert "| accuracy | 95 % interval | perception | 95 % interval |" in header
    assert "| 1510.7 | 1480.0 to 1540.0 |" in line


def test_tables_are_saved(tmp_path: Path) -> None:
    save_tables(ROWS, compare(ROWS), tmp_path)
    assert json.loads((tmp_path / "demo.json").read_text()) == to_json(ROWS, compare(ROWS))
    assert (tmp_path / "demo.md").read_text().splitlines() == to_markdown(ROWS, compare(ROWS)).splitlines()


def test_tables_that_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "demo.md").mkdir()
    with pytest.raises(OutputError, match=r"cannot write to .*; the answers are kept: run the same again"):
        save_tables(ROWS, compare(ROWS), tmp_path)


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: it comes with the extra analysis")
    from PIL import Image

    save_plot(ROWS, str(tmp_path / "plot.png"))
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000
    save_plot(ROWS, str(tmp_path / "plot.svg"))
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_what_a_plot_shows() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: it comes with the extra analysis")
    from sts_export.evaluation.results.plot import draw

    rows = [WHOLE, replace(ROWS[1], average_visual_tokens=64.0), replace(ROWS[2], average_visual_tokens=32.0)]
    left, right = draw(rows).axes
    whole, pruned = (container.lines[0] for container in left.containers)
    assert list(pruned.get_xdata()) == [32, 64] and list(pruned.get_ydata()) == pytest.approx([20, 80])
    assert list(whole.get_ydata()) == [80]
    assert [container.get_label() for container in right.containers] == ["whole (sts)", "b (sts)"]


@pytest.mark.parametrize(
    ("file", "message"), [("plot.txt", "use a name that ends in .png, .pdf, .svg"), ("none/plot.png", "its folder is missing")]
)
def test_a_plot_that_cannot_be_drawn(tmp_path: Path, file: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        save_plot(ROWS, str(tmp_path / file))
