"""The page in a browser: answers, budgets, chats, and what goes wrong."""

from __future__ import annotations

import pytest

from sts_export.serving.problems import LOADING
from tests.serving.page.driving import Open, answered, ask, choose_budget, expect, squares
from tests.serving.page.fake import FakeServer, count_pictures, said


def test_budgets_side_by_side(opened: Open) -> None:
    page, server = opened()
    page.locator("#examples button").first.click()
    expect(page.locator("#budget-said")).to_have_text("64")
    ask(page)
    answered(page)
    assert "Saved" not in page.locator("#measured-note").inner_text()  # nothing to compare with
    choose_budget(page, -2)
    assert page.locator("#budget").get_attribute("aria-valuetext") == "16 visual tokens"
    page.get_by_role("button", name="Ask again at 16").click()
    answered(page, 2)
    assert server.bodies[1] == {**server.bodies[0], "budget": "16"}
    rows = page.locator("#measured tbody tr:first-child")
    texts = [row.replace("\u2009", " ").split("\t") for row in rows.all_inner_texts()]
    assert [row[1:] for row in texts] == [
        ["576 → 192 → 64", "104 ms", "125", "–"],
        ["576 → 48 → 16", "56.0 ms", "125", "46 %"],  # 1 - 56 / 104
    ]
    note = "Saved: share of the 104 ms to the first token at budget 64, the largest that this bundle runs"
    expect(page.locator("#measured-note")).to_have_text(note)
    expect(page.locator(".turn")).to_have_count(1)
    # Each answer can be seen again.
    page.get_by_role("button", name="64: show this answer").click()
    expect(page.locator(".answer")).to_have_text("A red square – “64” of them.")
    assert squares(page, "kept") == {*range(64)}


@pytest.mark.parametrize(
    ("steps", "words"),
    [(0, "of the 104 ms to the first token without pruning (budget 64)"),
     (-1, "of the 72.0 ms to the first token at budget 32, the largest asked; this bundle can have more")],
)  # fmt: skip
def test_what_savings_are_against(opened: Open, steps: int, words: str) -> None:
    page, _ = opened(FakeServer({"unpruned": True}))
    choose_budget(page, steps)
    ask(page)
    answered(page)
    choose_budget(page, -1)
    page.locator("#again").click()
    answered(page, 2)
    expect(page.locator("#measured-note")).to_contain_text(words)


def test_percents_and_no_budgets(opened: Open) -> None:
    page, server = opened(FakeServer({"budget": "10%", "budgets": ["5%", "10%"]}))
    assert page.locator("#budget").get_attribute("aria-valuetext") == "10 % of the visual tokens"
    ask(page)
    expect(page.locator(".answer")).to_have_text("A red square – “10%” of them.")
    assert server.bodies[0]["budget"] == "10%"
    bare, other = opened(FakeServer({"budget": None, "budgets": []}))
    expect(bare.locator("#budget-field")).to_be_hidden()
    ask(bare)
    answered(bare)
    assert "budget" not in other.bodies[0]


def test_a_chat_goes_on_and_begins_anew(opened: Open) -> None:
    page, server = opened()
    page.locator("#examples button").first.click()
    ask(page, "First line\nsecond line")
    answered(page)
    ask(page, "And now?")
    expect(page.locator(".turn .facts").nth(1)).to_contain_text("visual tokens")
    messages = server.bodies[1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0] == server.bodies[0]["messages"][0] and said(server.bodies[0]) == "First line\nsecond line"
    assert messages[1]["content"] == "A red square – “64” of them."
    assert messages[2]["content"] == [{"type": "text", "text": "And now?"}]
    answered(page, 1)  # those of the first question are another table
    page.locator("#new").click()
    for gone in (".turn", "figure", "#measured tbody:visible", ".tokens"):
        expect(page.locator(gone)).to_have_count(0)
    expect(page.locator("#question")).to_be_focused()
    ask(page, "Anything?")
    answered(page)
    assert len(server.bodies[2]["messages"]) == 1 and count_pictures(server.bodies[2]) == 0


def test_keys_of_the_question(opened: Open) -> None:
    page, server = opened()
    box = page.locator("#question")
    box.press("Enter")  # nothing is asked
    box.type("one")
    box.press("Shift+Enter")
    box.type("two")
    expect(box).to_have_value("one\ntwo")
    box.press("Enter")
    answered(page)
    assert [said(body) for body in server.bodies] == ["one\ntwo"]
    expect(box).to_have_value("")


def test_opened_while_the_model_is_loaded(opened: Open) -> None:
    page, server = opened(FakeServer({"key": True}, is_loading=True))
    expect(page.get_by_role("alert")).to_have_text(LOADING.message)
    expect(page.locator("#examples-field")).to_be_hidden()
    server.is_loading = False
    expect(page.locator("#model")).to_have_text("demo")
    expect(page.locator("#examples button")).to_have_count(3)
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator("#error")).to_be_empty()
    ask(page)
    answered(page)
    assert server.bodies[0]["model"] == "demo"


def test_stop(opened: Open) -> None:
    page, server = opened()
    expect(page.locator("#stop")).to_be_hidden()
    ask(page, "Wait for it")
    expect(page.locator(".answer")).to_have_text("A red")
    expect(page.locator("#send")).to_be_disabled()
    expect(page.locator("#chat")).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop").click()
    assert server.gone.wait(30)
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#measured")).to_be_hidden()  # it was not measured
    expect(page.locator("#error")).to_be_empty()
    ask(page, "Go on")
    expect(page.locator(".turn .facts").nth(1)).to_contain_text("visual tokens")
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "A red"}


def test_a_new_chat_stops_the_old_one(opened: Open) -> None:
    page, server = opened()
    ask(page, "Wait for it")
    expect(page.locator(".answer")).to_have_text("A red")
    page.locator("#new").click()
    assert server.gone.wait(30)
    expect(page.locator(".turn")).to_have_count(0)
    ask(page)
    answered(page)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Fail at it", "the picture is damaged; copy it again"),
        ("Crash", "the server answered 502 Bad Gateway; its log may say why"),
    ],
)
def test_errors_are_one_line_and_the_question_stays(opened: Open, question: str, expected: str) -> None:
    page, _ = opened()
    page.locator("#examples button").first.click()
    ask(page, question)
    expect(page.get_by_role("alert")).to_have_text(expected)
    assert "\n" not in (page.get_by_role("alert").text_content() or "")
    expect(page.locator("#question")).to_have_value(question)
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("figure")).to_have_count(1)
    ask(page)
    answered(page)
    expect(page.locator("#error")).to_be_empty()


@pytest.mark.parametrize(
    ("question", "expected"), [("Break", "the engine failed; see its log"), ("End", "the answer broke off; ask again")]
)
def test_errors_amid_an_answer(opened: Open, question: str, expected: str) -> None:
    page, _ = opened()
    ask(page, question)
    expect(page.get_by_role("alert")).to_have_text(expected)
    expect(page.locator(".answer")).to_have_text("A red")
    expect(page.locator("#measured")).to_be_hidden()


def test_a_failed_second_answer_leaves_the_first(opened: Open) -> None:
    page, server = opened()
    page.locator("#examples button").first.click()
    ask(page)
    answered(page)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.locator("#again").click()
    expect(page.get_by_role("alert")).to_have_text("the server cannot be reached; see whether it runs")
    expect(page.locator(".answer")).to_have_text("A red square – “64” of them.")
    answered(page, 1)
    assert squares(page, "kept") == {*range(64)} and len(server.bodies) == 1
