"""The page in a browser: keyboard, names, contrast, phones, and what is kept to itself."""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path

import pytest

from tests.serving.page.driving import OTHER, PICTURE, Open, answered, ask, choose_budget, expect, give
from tests.serving.page.fake import TILED, FakeServer


def test_the_key_is_sent_and_nowhere_kept(opened: Open) -> None:
    page, server = opened(FakeServer({"key": True}))
    page.get_by_label("API key").fill("secret")
    ask(page)
    answered(page)
    assert server.keys == ["Bearer secret"]
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.reload()
    expect(page.get_by_label("API key")).to_have_value("")
    without, _ = opened()
    expect(without.get_by_label("API key")).to_be_hidden()


def test_texts_are_texts(opened: Open) -> None:
    hostile = "<img src=x onerror=alert(1)><b>bold</b>"
    page, _ = opened(FakeServer({"model": hostile}))
    give(page, "drop", [(f"{hostile}.png", "image/png", PICTURE.read_bytes())])
    ask(page, hostile)
    answered(page)
    expect(page.locator(".asked")).to_have_text(hostile)
    expect(page.locator("b, img[src=x]")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_contrast(opened: Open, scheme: str) -> None:
    page, _ = opened(FakeServer({"key": True}, views=TILED), color_scheme=scheme)
    page.locator("#examples button").first.click()
    ask(page)
    answered(page)
    give(page, "drop", [("notes.txt", "text/plain", b"text")])
    expect(page.get_by_role("alert")).not_to_be_empty()
    assert page.evaluate((Path(__file__).parent / "nameless.js").read_text()) == []
    assert page.evaluate((Path(__file__).parent / "contrasts.js").read_text()) == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((heading) => Number(heading.tagName[1]))")
    assert levels[0] == 1 and all(later - level <= 1 for level, later in pairwise(levels))
    assert page.locator("html").get_attribute("lang") == "en"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Open) -> None:
    page, _ = opened()
    page.locator("#examples button").first.click()
    ask(page)
    answered(page)
    page.locator("h1").click()
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id || ''"))
        if reached[-1] in ("", reached[0]) and len(reached) > 1:
            break
        ringed = """() => {
          const at = document.activeElement;
          const around = [at, at.nextElementSibling, at.previousElementSibling].filter(Boolean);
          return around.some((one) => getComputedStyle(one).outlineWidth === "3px");
        }"""
        assert page.evaluate(ringed), reached[-1]
    order = ["new", "files", "kept", "examples", "chat", "budget", "question", "again", "send", "measured"]
    assert [place for place, _ in groupby(reached) if place in order] == order


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_scrolls_one_way(opened: Open, width: int) -> None:
    server = FakeServer({"key": True, "model": "a-model-with-a-long-name/" * 4})
    page, _ = opened(server, viewport={"width": width, "height": 740})
    page.locator("#files").set_input_files([PICTURE, OTHER])
    ask(page, "W" * 200)
    answered(page)
    choose_budget(page, -1)
    page.locator("#again").click()
    answered(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (
        page.evaluate(
            """[...document.querySelectorAll("main *:not(.aside):not(svg *):not(input)")]
          .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"""
        )
        == []
    )
