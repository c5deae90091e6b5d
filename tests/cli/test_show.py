"""`show`: what was kept, as a picture or a page, of one or more bundles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sts_export.analysis.kept.panels import Panel, TokenMap
from sts_export.cli import main
from sts_export.generation.result import VisualTokens
from tests.cli.helpers import Work, error_line, tree

KEPT, STAGE1 = (255, 210, 0), (74, 163, 255)
WIDTH = 260 + 2 * 16  # of a sheet whose views are narrower than its text


def frames(file: Path, colour: tuple[int, int, int], side: int) -> float:
    """Tokens with a frame, but for the one in the legend."""
    with Image.open(file) as picture:
        pixels = int((np.asarray(picture.convert("RGB")) == colour).all(axis=-1).sum())
    return (pixels - (20**2 - 16**2)) / (side**2 - (side - 4) ** 2)


def test_show_writes_a_picture(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    output = work.folder / "kept.png"
    assert main(work.show("--max-new-tokens", "2")) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 36 -> 18 -> 6 visual tokens; answer:")
    assert (frames(output, KEPT, 40), frames(output, STAGE1, 40)) == (6, 12)  # 6 x 6 tokens of 40 pixels
    assert tree(work.folder) == {"kept.png"}


def test_show_writes_a_page(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    output = work.folder / "kept.html"
    assert main(work.show("--max-new-tokens", "2", output=str(output))) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 36 -> 18 -> 6 visual tokens; answer:")
    page = output.read_text(encoding="utf-8")
    (fates,) = re.findall(r'data-fates="(\d+)"', page)
    assert (len(fates), fates.count("1"), fates.count("2")) == (36, 12, 6)
    assert '<h2 id="panel-0">sts, budget 12</h2>' in page and "What is it?" in page
    assert tree(work.folder) == {"kept.html"}


def test_two_bundles(work: Work, families: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of different models: the same picture, a column each, with their names."""
    other = str(families / "llava_next-b")
    output = work.folder / "kept.html"
    argv = ["show", work.bundle, other, "--image", str(families / "wide.png"), "--prompt", "What?", "--max-new-tokens=1"]
    assert main([*argv, "-o", str(output)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output}: sts, budget 12: 36 -> 18 -> 6 visual tokens; answer:")
    assert second.startswith(f"{output}: sts, budget 20%: ")
    page = output.read_text(encoding="utf-8")
    names = re.findall(r'<span dir="auto">(wide.png[^:]*): (\d+)', page)
    total = int(second.split(": ")[2].split(" ")[0])
    assert names == [("wide.png", "36"), ("wide.png, whole", "36"), ("wide.png, tiles", str(total - 36))]
    assert "bundle (llava)" in page and "llava_next-b (llava_next)" in page
    assert "repulsion before the LLM, last-token after layer 1 of 2" in page


def test_two_budgets(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """A column each, with what `run --budget` keeps."""
    output = work.folder / "kept.html"
    assert main(work.show("--budget", "8", "--budget", "20%", "--max-new-tokens=1", output=str(output))) == 0
    lines = capsys.readouterr().out.splitlines()
    page = output.read_text(encoding="utf-8")
    fates = re.findall(r'data-fates="(\d+)"', page)
    for line, signs, budget in zip(lines, fates, ("8", "20%"), strict=True):
        assert line.startswith(f"{output}: sts, budget {budget}: 36 -> ") and f">sts, budget {budget}</h2>" in page
        assert main(work.run("--budget", budget, "--json", "--max-new-tokens=1")) == 0
        result = json.loads(capsys.readouterr().out)
        assert [token for token, fate in enumerate(signs) if fate in "12"] == result["kept_stage1"][0]
        assert [token for token, fate in enumerate(signs) if fate == "2"] == result["kept_stage2"]
    assert fates[0] != fates[1]


def test_counts(work: Work, families: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every bundle, with what `run --keep` keeps."""
    output = work.folder / "kept.html"
    argv = ["show", work.bundle, str(families / "qwen2_5_vl-b"), *work.show("--keep", "9,3", "--max-new-tokens=1")[2:]]
    assert main([*argv, "-o", str(output)]) == 0
    for line in (lines := capsys.readouterr().out.splitlines()):
        assert line.startswith(f"{output}: sts, K = 9, K' = 3: ") and "-> 9 -> 3 visual tokens; answer:" in line
    assert len(lines) == 2
    page = output.read_text(encoding="utf-8")
    assert page.count(">sts, K = 9, K&#x27; = 3</h2>") == 2
    signs = re.findall(r'data-fates="(\d+)"', page)[0]
    assert main(work.run("--keep", "9,3", "--json", "--max-new-tokens=1")) == 0
    result = json.loads(capsys.readouterr().out)
    assert [token for token, fate in enumerate(signs) if fate in "12"] == result["kept_stage1"][0]
    assert [token for token, fate in enumerate(signs) if fate == "2"] == result["kept_stage2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--keep", "19,6"], "this bundle was exported for K = 18 and K' = 6, and cannot keep 19,6: choose K from 1 to 18"),
        (["--keep", "9,3", "--budget", "8"], "give either a budget"),
        (["--keep", "9"], "--keep '9' is not two numbers"),
    ],
)
def test_counts_that_are_refused(
    work: Work,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: str,
) -> None:
    monkeypatch.delattr("sts_export.analysis.kept.answers.Pipeline")
    assert main(work.show(*options)) == 2
    assert error_line(capsys).startswith(expected) and tree(work.folder) == set()


def test_budgets_that_one_of_the_bundles_cannot_have(
    work: Work, families: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs before all of them are known."""
    monkeypatch.delattr("sts_export.analysis.kept.answers.Pipeline")
    argv = work.show("--budget", "13")
    assert main(argv) == 2
    assert error_line(capsys).startswith("budget 13 is unreachable")
    assert main([*argv[:2], str(families / "llava_next-b"), *argv[2:]]) == 2
    assert error_line(capsys).startswith("bundle: budget 13 is unreachable")
    assert tree(work.folder) == set()


@pytest.mark.parametrize(("answer", "printed"), [("x " * 500, "x " * 99 + "x..."), ("y" * 200, "y" * 200)])
def test_long_answers_are_cut(
    work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str, printed: str
) -> None:
    view = TokenMap("", Image.new("RGB", (14, 14)), 1, 1, frozenset({0}), frozenset({0}))
    panel = Panel("sts", (), VisualTokens(36, 18, 6), 0, ((view,),), answer)
    monkeypatch.setattr("sts_export.analysis.kept.show.save_kept", lambda *_: [panel])
    assert main(work.show()) == 0
    assert capsys.readouterr().out.removesuffix("\n").split("answer: ")[1] == printed


def test_the_last_bundle_is_looked_for_before_the_first_runs(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["show", work.bundle, "none", "--image", work.picture, "--prompt", "x", "-o", str(work.folder / "kept.png")]
    assert main(argv) == 2
    assert error_line(capsys).startswith("bundle none does not exist") and tree(work.folder) == set()
