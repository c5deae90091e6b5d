"""`sts-export` itself: what it prints, its exit codes, and what is left when it cannot finish."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sts_export.cli import main
from sts_export.cli.commands import summaries
from tests.cli.helpers import Work, error_line, tree


def test_no_disk_space(work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1000}))
    assert main(work.export()) == 2
    assert "no room for the weights" in error_line(capsys)
    assert tree(work.folder) == set()


def test_interrupt(work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sts_export.exporting.exporter.write_manifest", interrupt)
    assert main(work.export()) == 130
    assert error_line(capsys) == "interrupted"
    assert tree(work.folder) == set()


def test_an_engine_failure_is_exit_code_1(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """A bfloat16 bundle is a right request for another engine; this one cannot run it."""
    assert main(work.export("--dtype=bfloat16")) == 0
    capsys.readouterr()
    assert main(work.run(bundle=work.output)) == 1
    assert "cannot run bfloat16; export again with --dtype float32" in error_line(capsys)


@pytest.mark.parametrize("command", summaries())
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: sts-export" in capsys.readouterr().out


def test_help_begins_with_examples_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--weights link\n" in text and "20%%" not in text  # laid out as written
    for command in summaries():
        assert re.search(rf"^  {command}  +[a-z]", text, re.MULTILINE)


def test_export_prints_one_line(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(work.export("--weights", "link")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (
        f"{work.output}: 36 visual tokens -> 18 before the LLM -> 6 after layer 1 of 2 (average 12); "
        "KV rows 1042 lower, 1030 upper\n"
    )
    assert tree(work.folder) == {"new", "new/output", *(f"new/output/{name}" for name in tree(Path(work.output)))}
    assert main(["export", *work.export("--force", budget="8")]) == 0
