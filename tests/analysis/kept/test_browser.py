"""The page in a browser: its slider moved by keys and mouse, tokens pointed at, in light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sts_export.analysis.kept.page import make_page
from tests.analysis.kept.browser import NAMES, Browser, find_browser
from tests.analysis.kept.made import HOSTILE, panel, token_map

KINDS = ("before", "inside", "kept", "target", "merged")
SEEN = "getComputedStyle(document.querySelectorAll('svg.tokens .{kind}')[0]).{what}"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(started: Browser, tmp_path: Path) -> Browser:
    """Two columns, the first with merged tokens."""
    first = panel(token_map(kept1=(1, 2, 7), kept2=(2,), merged={0: 1, 4: 1, 11: 7}), answer=HOSTILE)
    file = tmp_path / "kept.html"
    file.write_text(make_page([first, panel(token_map(24, 24, range(100), range(50)))], HOSTILE), encoding="utf-8")
    started.requests.clear()
    started.problems.clear()
    started.open(file)
    return started


def visible(browser: Browser) -> set[str]:
    return {kind for kind in KINDS if browser.value(SEEN.format(kind=kind, what="visibility")) == "visible"}


def stage(browser: Browser) -> tuple[str, str]:
    """What the slider says to eyes and to screen readers."""
    said = browser.value("document.getElementById('stage-name').textContent")
    assert browser.value("document.getElementById('stage').getAttribute('aria-valuetext')") == said
    return browser.value("document.body.dataset.stage"), said


def middle(browser: Browser, token: int) -> tuple[float, float]:
    """Of a token of the first picture, which has 4 x 3, in pixels of the window."""
    left, top, width, height = browser.box("svg.tokens")
    row, column = divmod(token, 4)
    return left + (column + 0.5) * width / 4, top + (row + 0.5) * height / 3


def said(browser: Browser) -> str:
    text: str = browser.value("document.querySelector('.said').textContent")
    return text


def test_the_slider_moves_with_keys(page: Browser) -> None:
    assert stage(page) == ("2", "after stage 2, inside the LLM") and visible(page) == {*KINDS}
    page.press("Tab")
    assert page.value("document.activeElement.id") == "stage"
    page.press("ArrowLeft")
    assert stage(page) == ("1", "after stage 1, before the LLM") and visible(page) == {*KINDS}
    assert page.value(SEEN.format(kind="inside", what="fillOpacity")) == "0"
    page.press("ArrowLeft")
    assert stage(page) == ("0", "all tokens") and visible(page) == set()
    page.press("End")
    assert stage(page)[0] == "2" and page.value(SEEN.format(kind="inside", what="fillOpacity")) != "0"


def test_the_slider_moves_with_the_mouse(page: Browser) -> None:
    left, top, width, height = page.box("#stage")
    page.drag((left + width - 8, top + height / 2), (left + 2, top + height / 2))
    assert stage(page)[0] == "0" and visible(page) == set()


def test_tokens_that_are_pointed_at(page: Browser) -> None:
    page.move(*middle(page, 4))
    assert said(page) == "row 2, column 1: merged into row 1, column 2"
    assert page.value("document.querySelector('.ends').getAttribute('d')") == "M0.5 1.5L1.5 0.5"
    page.move(*middle(page, 1))
    assert said(page) == "row 1, column 2: dropped inside the LLM; 2 merged into it"
    assert page.value("document.querySelector('.ends').getAttribute('d')") == "M0.5 0.5L1.5 0.5M0.5 1.5L1.5 0.5"
    page.move(*middle(page, 2))
    assert said(page) == "row 1, column 3: kept"
    page.move(1, 1)
    assert said(page) == "" and page.value("document.querySelector('.cursor').getAttribute('d')") == ""


def test_tokens_with_keys(page: Browser) -> None:
    page.press("Tab")
    page.press("Tab")
    assert page.value("document.activeElement.classList.contains('tokens')")
    page.press("ArrowRight")
    assert said(page) == "row 1, column 1: merged into row 1, column 2"
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):  # not beyond the last row
        page.press(key)
    assert said(page) == "row 3, column 2: dropped before the LLM"
    page.press("Tab")
    assert said(page) == ""


def test_nothing_else_runs_and_nobody_is_asked(page: Browser) -> None:
    assert page.problems == []
    assert {address.split(":", 1)[0] for address in page.requests} <= {"file", "data"}
    assert len([address for address in page.requests if address.startswith("file")]) == 1
    assert page.value("document.querySelector('blockquote').textContent") == HOSTILE
    assert page.value("document.scripts.length") == 1


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
def test_light_and_dark(page: Browser, scheme: str, light: bool) -> None:
    page.prefer(scheme)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        corner, *_ = shot.convert("L").crop((0, shot.height - 3, 1, shot.height - 2)).tobytes()
    assert (corner > 200) is light and (corner < 60) is not light


def test_without_scripts_the_end_is_shown(page: Browser, tmp_path: Path) -> None:
    page.run_scripts(False)
    page.open(tmp_path / "kept.html")
    page.run_scripts(True)  # for the questions
    assert visible(page) == {*KINDS}
    assert page.value("getComputedStyle(document.querySelector('.slider')).display") == "none"
    assert page.value("document.querySelector('noscript').innerText").startswith("The slider needs JavaScript")
