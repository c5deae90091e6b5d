"""Where the file goes, what is refused before anything runs, and that no half of a file stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sts_export.analysis.kept.answers import Question, answer, check_columns
from sts_export.analysis.kept.show import check_output, write
from sts_export.errors import BudgetError, OutputError, RequestError
from tests.analysis.kept.made import HOSTILE, panel, token_map


@pytest.mark.parametrize("name", ["kept.png", "kept.jpg", "kept.JPEG", "kept.webp"])
def test_pictures(tmp_path: Path, name: str) -> None:
    target = check_output(str(tmp_path / name), ["cat.jpg"])
    write([panel(token_map())], "What?", target, name)
    with Image.open(tmp_path / name) as picture:
        assert picture.size[0] == 260 + 2 * 16
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["kept.html", "kept.HTM"])
def test_pages(tmp_path: Path, name: str) -> None:
    write([panel(token_map(), answer=HOSTILE + "\udcff")], "What?", check_output(str(tmp_path / name), []), name)
    assert r"漢字\udcff" in (tmp_path / name).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kept.txt", "use a name that ends in .png, .jpg, .webp or .html"),
        ("kept", "use a name that ends in"),
        ("none/kept.html", "none is not a folder; choose another --output"),
        ("folder.html", "it is a folder; choose another --output"),
        ("link.png", "link.png is the picture itself"),
        ("cat.png", "cat.png is the picture itself; choose another --output"),
    ],
)
def test_outputs_that_are_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.png").symlink_to("cat.png")
    with pytest.raises(OutputError, match=expected) as refused:
        check_output(str(tmp_path / name), [str(tmp_path / "link.png")])
    assert "\n" not in str(refused.value)


def test_pictures_that_are_too_large_for_their_form(tmp_path: Path) -> None:
    panels = [panel(token_map())] * 60
    with pytest.raises(OutputError, match=r"kept.webp would have \d+ x \d+ pixels, more than .webp holds: use .html"):
        write(panels, "What?", tmp_path / "kept.webp", "kept.webp")
    assert [*tmp_path.iterdir()] == []


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (target := tmp_path / "kept.png").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"cannot write kept.png: No space left on device; choose another --output"):
        write([panel(token_map())], "What?", target, "kept.png")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"] and target.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("bundles", "budgets", "expected"),
    [
        ([], [], "nothing to show: give at least one bundle"),
        (["a", "b", "./a/"], [], "bundle ./a/ is given twice, which draws the same twice: give it once"),
        (["a"], ["10%", "8", " 10.0 %"], "budget 10.0 % is given twice, which draws the same twice: give it once"),
    ],
)
def test_columns_that_are_refused(bundles: list[str], budgets: list[str], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        check_columns(bundles, budgets)


def test_a_budget_that_is_no_number() -> None:
    with pytest.raises(BudgetError, match="budget 'much' is not a plain number"):
        check_columns(["a"], ["8", "much"])


def test_the_same_number_of_tokens_and_percent_are_two_budgets() -> None:
    check_columns(["a", "b"], ["10", "10%", "20%"])


def test_no_picture() -> None:
    with pytest.raises(RequestError, match="give at least one picture"):
        answer(Question(["a"], [], "What?"))
