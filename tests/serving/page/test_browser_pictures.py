"""The page in a browser: pictures in, and what was kept of them."""

from __future__ import annotations

import base64

import pytest

from tests.serving.page.driving import OTHER, PICTURE, QUESTION, THIRD, Open, answered, ask, expect, give, squares
from tests.serving.page.fake import SIDE, TILED, FakeServer, count_pictures


def test_a_file_a_question_and_what_was_kept(opened: Open) -> None:
    page, server = opened()
    page.locator("#files").set_input_files(PICTURE)
    expect(page.locator("figure img")).to_have_attribute("alt", "scene-0.png")
    ask(page)
    answered(page)
    expect(page.locator(".answer")).to_have_text("A red square – “64” of them.")
    (body,) = server.bodies
    data = body["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(data.removeprefix("data:image/png;base64,")) == PICTURE.read_bytes()
    assert body == {
        "model": "demo",
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": QUESTION}]}
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "budget": "64",
        "return_kept": True,
    }
    assert server.keys == [None]
    assert squares(page, "kept") == {*range(64)} and squares(page, "inside") == {*range(64, 192)}
    assert squares(page, "before") == {*range(192, SIDE**2)}
    expect(page.locator("body")).to_have_attribute("data-stage", "2")
    expect(page.locator("#counts")).to_have_text("576 → 192 → 64 visual tokens")


def test_the_drawing_lies_on_the_picture(opened: Open) -> None:
    cut = [{"box": [0.25, 0, 0.75, 1], "rows": SIDE, "columns": SIDE, "first": 0}]
    page, _ = opened(FakeServer(views=cut))
    page.locator("#files").set_input_files(PICTURE)
    ask(page)
    answered(page)
    frame, kept = page.locator("figure img").bounding_box(), page.locator(".tokens .before").bounding_box()
    assert frame is not None and kept is not None
    assert kept["x"] == pytest.approx(frame["x"] + frame["width"] / 4, abs=1.5)
    assert kept["width"] == pytest.approx(frame["width"] / 2, abs=1.5)
    assert kept["y"] + kept["height"] == pytest.approx(frame["y"] + frame["height"], abs=1.5)
    expect(page.locator("#outside-legend")).to_be_visible()
    expect(page.locator(".tokens .outside")).to_have_count(1)


def test_stages_can_be_chosen(opened: Open) -> None:
    page, _ = opened()
    page.locator("#examples button").first.click()
    ask(page)
    answered(page)
    look = "(path) => [getComputedStyle(path).opacity, getComputedStyle(path).fillOpacity, getComputedStyle(path).stroke]"
    yellow, blue = "rgb(255, 210, 0)", "rgb(74, 163, 255)"
    expected = {"2": (["1", "0.35", blue], yellow), "1": (["1", "0", blue], blue), "0": (["0", "0.35", blue], yellow)}
    for stage, (inside, frame) in expected.items():
        page.locator(f"input[name=stage][value='{stage}']").check()
        assert page.locator(".tokens .inside").evaluate(look) == inside
        assert page.locator(".tokens .kept").evaluate(look)[2] == frame


def test_kept_tokens_are_shown_while_the_answer_comes(opened: Open) -> None:
    page, server = opened()
    page.locator("#examples button").first.click()
    ask(page, "Wait for it")
    expect(page.locator(".answer")).to_have_text("A red")
    expect(page.locator("body")).to_have_attribute("data-stage", "2")
    assert squares(page, "inside") == {*range(64, 192)} and squares(page, "kept") == {*range(64)}
    expect(page.locator("#counts")).to_have_text("576 → 192 → 64 visual tokens")
    page.locator("#stop").click()
    assert server.gone.wait(30)


@pytest.mark.parametrize("question", [QUESTION, "Wait for it"])
def test_both_stages_are_shown_after_each_other(opened: Open, question: str) -> None:
    """Where motion is wanted; also while the answer comes."""
    page, _ = opened(reduced_motion="no-preference")
    page.evaluate(
        """() => {
          window.stages = [];
          const watch = new MutationObserver(() => window.stages.push(document.body.dataset.stage));
          watch.observe(document.body, { attributes: true });
        }"""
    )
    page.locator("#examples button").first.click()
    ask(page, question)
    expect(page.locator("body")).to_have_attribute("data-stage", "2")
    stages = page.evaluate("window.stages")
    assert [stage for stage, before in zip(stages, [None, *stages], strict=False) if stage != before][-2:] == ["1", "2"]


def test_tiles_or_the_overview(opened: Open) -> None:
    page, _ = opened(FakeServer(views=TILED))
    page.locator("#examples button").first.click()
    ask(page)
    answered(page)
    grid = page.locator(".tokens g")
    assert f"scale({336 / 40:g} " in (grid.get_attribute("transform") or "")
    page.locator("#overview").check()
    assert f"scale({336 / SIDE:g} " in (grid.get_attribute("transform") or "")
    assert squares(page, "kept") == {*range(64)}


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(opened: Open, kind: str) -> None:
    page, server = opened()
    give(page, kind, [(file.name, "image/png", file.read_bytes()) for file in (PICTURE, OTHER)])
    expect(page.locator("figure")).to_have_count(2)
    page.get_by_role("button", name="Remove scene-0.png").click()
    expect(page.locator("figure img")).to_have_attribute("alt", "scene-1.png")
    give(page, kind, [("again.png", "image/png", PICTURE.read_bytes())])
    expect(page.locator("figure")).to_have_count(2)
    ask(page)
    answered(page)
    assert count_pictures(server.bodies[0]) == 2
    expect(page.locator(".tokens")).to_have_count(2)
    expect(page.locator("#counts")).to_have_text("1152 → 384 → 128 visual tokens")


@pytest.mark.parametrize(
    ("files", "left", "expected"),
    [
        ([("notes.txt", "text/plain", b"text")], 0, "notes.txt cannot be used; give a PNG, JPEG, WebP, GIF, BMP or AVIF"),
        ([("drawn.svg", "image/svg+xml", b"<svg/>")], 0, "drawn.svg cannot be used; give a PNG"),
        ([("torn.png", "image/png", b"\x89PNG")], 0, "torn.png is damaged or no picture; give another file"),
        (
            [(file.name, "image/png", file.read_bytes()) for file in (PICTURE, OTHER, THIRD)],
            2,
            "at most 2 pictures in a chat; remove one, or begin a new chat",
        ),
    ],
    ids=["text", "drawing", "damaged", "many"],
)
def test_files_that_are_refused(opened: Open, files: list[tuple[str, str, bytes]], left: int, expected: str) -> None:
    page, _ = opened()
    give(page, "drop", files)
    expect(page.get_by_role("alert")).to_contain_text(expected)
    expect(page.locator("figure")).to_have_count(left)


def test_examples(opened: Open) -> None:
    page, server = opened()
    first, second, third = (page.get_by_role("button", name=f"Example scene-{number}.png") for number in range(3))
    first.click()
    expect(first).to_have_attribute("aria-pressed", "true")
    second.click()
    third.click()  # in the second's place: there is room for two
    expect(page.locator("figure")).to_have_count(2)
    expect(second).to_have_attribute("aria-pressed", "false")
    third.click()
    expect(page.locator("figure")).to_have_count(1)
    ask(page)
    answered(page)
    second.click()  # another chat
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("figure img")).to_have_attribute("alt", "scene-1.png")
    assert count_pictures(server.bodies[0]) == 1
