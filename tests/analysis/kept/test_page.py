"""The page: whole, inert but for its own script, and true to the panels."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from importlib.resources import files

from PIL import Image

from sts_export.analysis.kept.page import make_page
from tests.analysis.kept.made import HOSTILE, panel, token_map


class Read(HTMLParser):
    """Tags with their attributes, and the text of each."""

    VOID = frozenset({"meta", "input", "image", "use", "path", "option"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag and kind in (None, attributes.get("class"))]


def squares(path: dict[str, str], columns: int) -> set[int]:
    """Numbers of the tokens that a path goes around."""
    corners = re.findall(r"M([\d.]+) ([\d.]+)h", path["d"])
    return {int(float(row)) * columns + int(float(column)) for column, row in corners}


def test_the_page_is_whole_and_asks_nobody() -> None:
    page = make_page([panel(token_map()), panel(token_map(2, 2, (0, 3), (3,)))], "What is it?")
    read = Read(page)
    assert read.open == [] and page.startswith("<!doctype html>")
    assert "$" not in page.replace(read.texts["script"][0], "")  # no place was left unfilled
    for _, attributes in read.tags:
        assert not {"src", "onload", "onclick", "style"} & set(attributes)
        assert attributes.get("href", "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "url(" not in page and "import" not in read.texts["style"][0] and "fetch" not in read.texts["script"][0]
    assert len(read.texts["script"]) == 1


def test_only_its_own_script_and_style_may_run() -> None:
    read = Read(make_page([panel(token_map())], "What?"))
    policy = next(tag["content"] for tag in read.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(read.texts[name][0].encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    for name, kind in (("page.js", "script"), ("page.css", "style")):
        assert read.texts[kind][0] == files("sts_export.analysis.kept").joinpath(name).read_text(encoding="utf-8")


def test_texts_are_texts() -> None:
    read = Read(make_page([panel(token_map(name=HOSTILE), title=HOSTILE, answer=HOSTILE)], HOSTILE))
    assert len(read.all("script")) == 1 and read.all("img") == [] and read.open == []
    assert read.texts["q"] == [HOSTILE] and read.texts["blockquote"] == [HOSTILE] and read.texts["h2"] == [HOSTILE]
    assert any(text.startswith(HOSTILE) for text in read.texts["span"])
    assert read.all("svg", "tokens")[0]["aria-label"].startswith(HOSTILE)


def test_placeholders_in_texts_stay() -> None:
    page = make_page([panel(token_map(), answer="$script costs $5 $$ ${title}")], "$panels")
    read = Read(page)
    assert read.texts["blockquote"] == ["$script costs $5 $$ ${title}"] and read.texts["q"] == ["$panels"]


def test_layers_are_the_fates() -> None:
    read = Read(make_page([panel(token_map(kept1=(1, 2, 7), kept2=(2,), merged={0: 1, 4: 1, 11: 7}))], "What?"))
    (tokens,) = read.all("svg", "tokens")
    assert tokens["viewbox"] == "0 0 4 3" and tokens["data-columns"] == "4"
    assert tokens["data-fates"] == "312030010003"
    assert tokens["data-merged"] == "0>1 4>1 11>7"
    paths = read.tags[read.tags.index(("svg", tokens)) :]
    by_class = {
        kind: [squares(at, 4) for tag, at in paths if tag == "path" and at["class"] == kind]
        for kind in ("before", "inside", "kept", "merged", "target")
    }
    assert by_class == {
        "before": [{0, 3, 4, 5, 6, 8, 9, 10, 11}],
        "inside": [{1, 7}],
        "kept": [{2}],
        "merged": [{0, 4}, {11}],
        "target": [{1}, {7}],
    }
    colours = [at["fill"] for tag, at in paths if tag == "path" and at["class"] == "merged"]
    assert colours == [at["stroke"] for tag, at in paths if tag == "path" and at["class"] == "target"] and len({*colours}) == 2


def test_a_picture_is_there_once() -> None:
    view, other = token_map(), token_map(colour=(10, 20, 30))
    read = Read(make_page([panel(view), panel(view, other)], "What?"))
    shown = [attributes["href"] for attributes in read.all("use")]
    symbols = {f"#{attributes['id']}" for attributes in read.all("symbol")}
    assert shown[0] == shown[1] != shown[2] and {*shown} == symbols and len(read.all("image")) == 2
    data = read.all("image")[0]["href"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == view.picture.size


def test_large_pictures_are_made_smaller() -> None:
    read = Read(make_page([panel(token_map(200, 3, (0,), (0,)))], "What?"))
    data = read.all("image")[0]["href"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (1024, 15)


def test_controls_have_names() -> None:
    read = Read(make_page([panel(token_map()), panel(token_map())], "What?"))
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    assert {label["for"] for label in read.all("label")} == {"stage"} <= {*ids}
    assert {article["aria-labelledby"] for article in read.all("article")} <= {*ids}
    slider = next(tag for tag in read.all("input") if tag["type"] == "range")
    assert (slider["min"], slider["max"], slider["step"], slider["value"]) == ("0", "2", "1", "2")
    assert read.all("body")[0]["data-stage"] == "2"
    assert all(svg["tabindex"] == "0" for svg in read.all("svg", "tokens"))


def test_the_legend_has_what_there_is() -> None:
    def legend(merged: dict[int, int] | None) -> list[tuple[str, str]]:
        read = Read(make_page([panel(token_map(kept2=(1, 2, 7), merged=merged))], "What?"))
        return list(zip((entry["class"] for entry in read.all("li")), read.texts["li"], strict=True))

    plain = [("at-1", "kept by stage 1"), ("at-2", "kept"), ("at-1 at-2", "dropped before the LLM, by stage 1")]
    assert legend(None) == plain
    assert [stages for stages, _ in legend({0: 1})] == [*(stages for stages, _ in plain), "at-1 at-2"]


def test_counts_and_empty_answers() -> None:
    page = make_page([panel(token_map(), answer="", cls_tokens=2)], "What?")
    assert Read(page).texts["blockquote"] == ["(nothing)"]
    assert re.sub("<[^>]+>", "", page).count("12 → 3 → 1 visual tokens (2 CLS)") == 1
