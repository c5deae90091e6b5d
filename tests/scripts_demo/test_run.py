"""The command: files, what a second run does, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.demo_results.__main__ import main
from scripts.demo_results.page import PAGE
from scripts.demo_results.records import RESULTS, latest_record
from sts_export import Pipeline
from sts_export.demo.held_out import held_out

QUESTIONS = 4


def command(folder: Path, *more: str) -> list[str]:
    return ["--questions", str(QUESTIONS), "--threads", "1", "--work", str(folder / "work"), "--output", str(folder), *more]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    assert main(command(folder, "--tables", "quantized")) == 0
    return folder


def answers(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Lines of each journal, without what it is of."""
    files = (folder / "work" / "answers").glob("*.jsonl")
    return {file.name: [json.loads(line) for line in file.read_text().splitlines()[1:]] for file in files}


@pytest.mark.slow
def test_a_table_is_a_record_and_a_page(measured: Path) -> None:
    found = latest_record("quantized", measured)
    assert found is not None
    file, record = found
    assert sorted(path.name for path in (measured / RESULTS).iterdir()) == [file]
    assert (record.table, record.model, record.questions) == ("quantized", "demo", QUESTIONS)
    formats = ["fp32", "fp16", "int8", "int4"]
    expected = [(name, None) for name in formats] + [(name, budget) for name in formats for budget in (64, 32)]
    assert [(row.name, row.budget) for row in record.rows] == expected
    assert {row.asked for row in record.rows} == {QUESTIONS}
    assert f"`{file}`" in (measured / PAGE).read_text()


@pytest.mark.slow
def test_right_answers_are_counted(measured: Path) -> None:
    """From the journal and the world itself."""
    (own,) = [said for name, said in answers(measured).items() if name.startswith("demo-sts-float32-96-32-")]
    truth = [question.answer for question in held_out(0)[1]][:QUESTIONS]
    found = latest_record("quantized", measured)
    assert found is not None
    row = found[1].row("fp32", 64)
    assert row is not None and row.keep == (96, 32)
    assert row.right == sum(answer["text"].strip() == true for answer, true in zip(own, truth, strict=True))


@pytest.mark.slow
def test_a_second_run_asks_nothing(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, page = answers(measured), (measured / PAGE).read_text()
    bundles = {path: path.stat().st_mtime_ns for path in (measured / "work" / "bundles").glob("*/manifest.json")}
    assert len(before) == 12 and {len(said) for said in before.values()} == {QUESTIONS}
    assert len(bundles) == 8
    monkeypatch.setattr(Pipeline, "generate", None)
    assert main(command(measured, "--tables", "quantized")) == 0
    assert answers(measured) == before
    assert {path: path.stat().st_mtime_ns for path in bundles} == bundles
    assert (measured / PAGE).read_text() == page


@pytest.mark.slow
def test_what_a_kill_left_out_is_asked_again_and_nothing_else(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(measured)
    (file,) = (measured / "work" / "answers").glob("demo-sts-float32-48-16-*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])  # the last line is cut off
    asked, generate = [], Pipeline.generate

    def noted(self: Pipeline, prompts: list[str], *rest: object, **settings: object) -> object:
        asked.extend(prompts)
        return generate(self, prompts, *rest, **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(Pipeline, "generate", noted)
    assert main(command(measured, "--tables", "quantized")) == 0
    assert asked == [held_out(0)[1][QUESTIONS - 1].text]
    texts = {name: [(line["id"], line["text"]) for line in said] for name, said in answers(measured).items()}
    assert texts == {name: [(line["id"], line["text"]) for line in said] for name, said in before.items()}


@pytest.mark.slow
def test_the_page_is_made_again_from_the_records_alone(measured: Path, tmp_path: Path) -> None:
    (tmp_path / RESULTS).mkdir(parents=True)
    for file in (measured / RESULTS).iterdir():
        (tmp_path / RESULTS / file.name).write_bytes(file.read_bytes())
    assert main(["--page-only", "--output", str(tmp_path)]) == 0
    assert (tmp_path / PAGE).read_text() == (measured / PAGE).read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tables", "speed"], "invalid choice: 'speed'"),
        (["--questions", "0"], "--questions must be at least 1"),
        (["--threads", "-1"], "--threads must be at least 1"),
        (["--output", "{file}"], "choose another --output"),
        (["--work", "{file}/x"], "choose another --work"),
        (["--model", "demoo"], "did you mean demo"),
        (["--page-only", "--output", "{file}/x"], "choose another --output"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    given = [argument.format(file=file) for argument in arguments]
    assert main([*command(tmp_path), *given]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and said in captured.err
    assert captured.out == "" and not list((tmp_path / "work").glob("*/*"))


@pytest.mark.parametrize("content", ["{", "{}", '{"table": "budgets"}'])
def test_a_damaged_record_is_named_before_anything_runs(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / RESULTS).mkdir(parents=True)
    (tmp_path / RESULTS / "2026-01-02-cpu2-demo-quantized.json").write_text(content)
    assert main(command(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is no record of table quantized" in error
