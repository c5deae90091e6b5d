"""`analyze` from the command line; the rest is in tests/analysis/tower."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sts_export.cli import main
from sts_export.testing.checkpoints import random_image, write_random_llava
from tests.cli.helpers import Work, check_refused, tree

for module, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
    pytest.importorskip(module, reason=f"{name} is absent: it comes with the extra analysis")


def pictures(work: Work, name: str = "pictures") -> str:
    folder = work.folder / name
    folder.mkdir()
    random_image(0).save(folder / "a.png")
    return str(folder)


def line(work: Work, *arguments: str, images: str | None = None, output: str | None = None) -> list[str]:
    return ["analyze", work.bundle, "--images", images or pictures(work), "-o", output or work.output, *arguments]


def test_table_and_json(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    argv = line(work, "--tsne", "0")
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("KNN consistency of features and attention of CLS, mean of 1 picture(s)")
    assert tree(Path(work.output)) == {"analysis.json", "consistency.png"}
    argv[argv.index(work.output)] = str(work.folder / "second")
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((work.folder / "second" / "analysis.json").read_text())


def damaged(work: Work) -> str:
    folder = pictures(work)
    (Path(folder) / "b.png").write_bytes(b"\x89PNG")
    return folder


def empty(work: Work) -> str:
    (work.folder / "empty").mkdir()
    return str(work.folder / "empty")


ERRORS: dict[str, tuple[Callable[[Work], list[str]], str]] = {
    "no-bundle": (lambda w: ["analyze", "none", "--images", pictures(w), "-o", w.output], "bundle none does not exist"),
    "no-images": (lambda w: ["analyze", w.bundle, "-o", w.output], "required: --images"),
    "images-missing": (lambda w: line(w, images="none"), "none is not a folder; give one that holds pictures"),
    "images-empty": (lambda w: line(w, images=empty(w)), "holds no picture; give one with PNG"),
    "images-damaged": (lambda w: line(w, images=damaged(w)), "b.png' is "),
    "output-exists": (lambda w: line(w, output=pictures(w, "there")), "there exists; choose another --output or remove it"),
    "output-below-a-file": (lambda w: line(w, output=f"{w.picture}/x"), "cannot write"),
    "tsne-negative": (lambda w: line(w, "--tsne=-1"), "--tsne must be at least 0, not -1"),
    "checkpoint-missing": (lambda w: line(w, "--checkpoint", "no/such/folder"), "unknown model 'no/such/folder'"),
    "checkpoint-other": (
        lambda w: line(w, "--checkpoint", str(write_random_llava(w.folder / "other"))),
        "is not the checkpoint this bundle was made from",
    ),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("arguments", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_refusals(
    work: Work, capsys: pytest.CaptureFixture[str], arguments: Callable[[Work], list[str]], expected: str
) -> None:
    check_refused(work, capsys, arguments, expected)


@pytest.mark.parametrize(("module", "name"), [("torch", "PyTorch"), ("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_what_is_absent_is_named(work: Work, module: str, name: str) -> None:
    code = f"import sys; sys.modules['{module}'] = None; from sts_export.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run([sys.executable, "-c", code, *line(work)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"sts-export: analyze needs {name}: pip install 'sts-export[analysis]'\n"
    assert tree(work.folder) == {"pictures", "pictures/a.png"}
