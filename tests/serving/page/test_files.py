"""The page's files: all of them, nothing else, and nothing in them that the policy would refuse or that asks elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sts_export.serving import page
from sts_export.serving.page.files import CONTENT_SECURITY_POLICY, page_file

FOLDER = Path(page.__file__).parent
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".py")
VOID = ("meta", "link", "input", "path", "rect")


class Tags(HTMLParser):
    """Tags with their attributes; every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.scripted = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.scripted += data


def text(name: str) -> str:
    found = page_file(name)
    assert found is not None
    return found[0].decode()


@pytest.fixture(scope="module")
def index() -> Tags:
    return Tags(text("index.html"))


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_given_as_it_is(name: str) -> None:
    found = page_file(name)
    assert found is not None and found[0] == (FOLDER / name).read_bytes()
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert found[1].split(";")[0] == kinds[name.rpartition(".")[2]]
    assert name.endswith(".svg") or found[1].endswith("; charset=utf-8")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "files.py", "__init__.py", "../page/page.css", "./page.css", "page.css/", "/page.css", "PAGE.CSS"),
        *("page.css\0", "..\\page\\page.css", str(FOLDER / "page.css"), "../../__init__.py", "info", "page%2ecss"),
    ],
)
def test_nothing_else_is(name: str) -> None:
    assert page_file(name) is None


def test_nothing_runs_but_files_of_the_page(index: Tags) -> None:
    assert index.open == [] and index.scripted == ""
    for tag, attributes in index.tags:
        assert tag != "style" and not [name for name in attributes if name.startswith("on") or name == "style"]
    asked = [at[name] for tag, at in index.tags for name in ("src", "href") if name in at and tag in ("script", "link")]
    assert len(asked) == 3 and all(address.startswith("page/") for address in asked)
    assert {address.removeprefix("page/") for address in asked} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_nobody_else_is_asked(name: str) -> None:
    own = text(name).replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", own, flags=re.MULTILINE)
    assert "url(" not in own.replace("url(#", "") and "@import" not in own


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_scripts_import_each_other_and_make_no_markup_of_texts(name: str) -> None:
    script = text(name)
    assert {source.removeprefix("./") for source in re.findall(r'from "([^"]+)"', script)} <= {*NAMES}
    markup, code, kept = r"(inner|outer|Adjacent)HTML|document\.write", r"eval\(|new Function", r"(local|session)Storage|cookie"
    assert not re.search(f"{markup}|{code}|{kept}", script)


def test_scripts_find_their_elements(index: Tags) -> None:
    ids = [attributes["id"] for _, attributes in index.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    assert {*re.findall(r'\bat\("([\w-]+)"\)', text("page.js"))} <= {*ids}
    named = [at[name] for _, at in index.tags for name in ("for", "aria-labelledby", "aria-describedby") if name in at]
    assert {*named} <= {*ids}


def test_the_policy_allows_what_the_page_needs() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' data: blob:"
