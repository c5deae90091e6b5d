"""`evaluate` from the command line; the rest is in tests/evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.cli import main
from sts_export.cli.commands import load
from sts_export.evaluation import evaluate as module
from sts_export.evaluation.journal import Journal
from sts_export.evaluation.tasks import tasks
from tests.cli.helpers import error_line, tree
from tests.evaluation.helpers import pope


class Place:
    """Bundles, the questions of POPE, and a folder for what comes of it."""

    def __init__(self, bundles: Path, folder: Path) -> None:
        self.bundles, self.folder = bundles, folder
        self.data = pope(folder / "data")
        self.output = folder / "out"

    def line(self, *arguments: str, bundles: tuple[str, ...] = ("whole", "pruned"), task: str = "pope") -> list[str]:
        names = [str(self.bundles / name) for name in bundles]
        data = [] if task == "demo" else ["--data", str(self.data)]
        return ["evaluate", *names, "--task", task, *data, "--threads", "1", "-o", str(self.output), *arguments]


@pytest.fixture
def place(bundles: Path, tmp_path: Path) -> Place:
    return Place(bundles, tmp_path)


def test_table_json_and_files(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(place.line("--budget", "12", "--budget", "6", "--keep", "9,6")) == 0
    printed = capsys.readouterr()
    rows = [line.split(" | ")[2] for line in printed.out.splitlines()[2:]]
    assert rows == ["100%", "12", "6", "9,6"]
    assert printed.out == (place.output / "pope.md").read_text() and printed.err == ""
    assert len(list((place.output / "answers").glob("pope-*.jsonl"))) == 4
    assert main(place.line("--budget", "12", "--budget", "6", "--keep", "9,6", "--json")) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == json.loads((place.output / "pope.json").read_text())
    assert [row["budget"] for row in json.loads(again.out)["rows"]] == rows
    assert again.err == "note: 24 of 24 answers are there already\n"


def test_limit_and_compare_with(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = place.line("--limit", "1", "--compare-with", str(place.bundles / "pruned"), "--json")
    assert main(arguments) == 0
    whole, pruned = json.loads(capsys.readouterr().out)["rows"]
    assert (whole["asked"], whole["compared_with"], whole["unpruned"]) == (
        1,
        pruned["bundle"] + "@12",
        whole["bundle"] + "@100%",
    )


def test_a_plot(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: it comes with the extra analysis")
    assert main(place.line("--limit", "1", "--plot", str(place.folder / "a.png"))) == 0
    assert (place.folder / "a.png").stat().st_size > 1000


def test_the_help_names_every_task() -> None:
    text = load("evaluate").make_parser().format_help()
    assert [name for name in tasks() if name not in text] == []


def break_picture(place: Place) -> list[str]:
    (place.data / "val2014" / "a.jpg").unlink()
    return place.line()


def break_line(place: Place) -> list[str]:
    (place.data / "coco_pope_popular.json").write_text("{}\n{")
    return place.line()


ERRORS: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "no-task": (lambda p: ["evaluate", str(p.bundles / "whole")], "required: --task"),
    "unknown-task": (lambda p: p.line(task="pop"), "unknown task 'pop': did you mean pope?"),
    "no-data": (
        lambda p: ["evaluate", str(p.bundles / "whole"), "--task", "gqa"],
        "needs the benchmark's files (--data FOLDER)",
    ),
    "no-bundle": (lambda p: p.line(bundles=("none",)), "none does not exist"),
    "picture-missing": (break_picture, "a.jpg of question random-1 is missing"),
    "annotation": (break_line, "coco_pope_popular.json, line 1: 'label' is missing; correct the file"),
    "budget": (lambda p: p.line("--budget", "30"), "budget 30 is unreachable"),
    "keep": (lambda p: p.line("--keep", "3"), "--keep '3' is not two numbers"),
    "limit": (lambda p: p.line("--limit", "0"), "limit must be at least 1"),
    "batch-size": (lambda p: p.line("--batch-size", "0"), "batch_size must be at least 1"),
    "new-tokens": (lambda p: p.line("--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
    "plot": (lambda p: p.line("--plot", "a.txt"), "use a name that ends in .png"),
    "compare-with": (lambda p: p.line("--compare-with", "other"), "no row is 'other'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_requests(place: Place, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """One line, exit code 2, before anything runs."""
    arguments, expected = ERRORS[case]
    argv = arguments(place)
    before = tree(place.folder)
    assert main(argv) == 2
    assert expected in error_line(capsys)
    assert tree(place.folder) - before <= {"out", "out/.lock"}


def test_an_interrupt_keeps_the_answers(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Journal.add

    def interrupted(self: Journal, *args: object) -> None:
        if len(self.answers) == 3:
            raise KeyboardInterrupt
        add(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupted)
        assert main(place.line(bundles=("pruned",))) == 130
    assert capsys.readouterr().err == "sts-export: interrupted\n"
    assert main(place.line(bundles=("pruned",))) == 0
    assert "note: 3 of 6 answers are there already" in capsys.readouterr().err


def test_an_output_that_is_a_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.output.write_text("")
    assert main(place.line()) == 2
    assert "choose another --output" in error_line(capsys)


def test_bundles_are_not_opened_where_every_answer_is_there(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(place.line("--limit", "1")) == 0
    monkeypatch.setattr(module, "Pipeline", None)
    assert main(place.line("--limit", "1")) == 0
