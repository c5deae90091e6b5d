"""Every kind of URL, and what the lines of errors say."""

from __future__ import annotations

import ast
import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.errors import ImageError
from sts_export.serving.pictures.lines import shown
from sts_export.serving.pictures.reading import picture_bytes
from sts_export.serving.pictures.rules import PictureRules

ALLOWED = PictureRules(hosts=("*",))


def refusal(url: str, rules: PictureRules) -> str:
    with pytest.raises(ImageError) as error:
        picture_bytes(url, rules)
    return str(error.value)


def test_data_urls_need_no_rules() -> None:
    for scheme in ("data", "DATA"):
        assert picture_bytes(f"{scheme}:image/png;base64,{base64.b64encode(b'picture').decode()}", PictureRules()) == b"picture"


def test_files_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"picture")
    url = (tmp_path / "cat.png").as_uri()
    assert picture_bytes(url, PictureRules(folder=tmp_path)) == b"picture"
    assert "reads no files" in refusal(url, PictureRules())


@pytest.mark.parametrize("url", ["http://a.example/", "https://a.example/", "HTTPS://a.example/", "http:"])
def test_the_web_needs_hosts(url: str) -> None:
    assert refusal(url, PictureRules()).startswith("this server fetches no pictures; send data:image/png;base64,...")


@pytest.mark.parametrize(
    "url",
    ["", "cat.png", "/etc/passwd", "iVBORw0KGgo=", "ftp://a.example/", "httpx://a.example/", " data:,", "\n"],
)
def test_other_urls_are_refused(url: str) -> None:
    line = refusal(url, ALLOWED)
    assert "is no picture that this server takes; send data:image/png;base64,..." in line
    assert "\n" not in line


@pytest.mark.parametrize("start", ["https://127.0.0.1", "http://0x7f.1", "https://a:1", "file://", "ftp://a", "https:", "x"])
def test_lines_do_not_tell_secrets(start: str, tmp_path: Path) -> None:
    rules = PictureRules(hosts=("*",), folder=tmp_path)
    for url in (
        f"{start}/cat.png?key=SECRET",
        f"{start}/cat.png#SECRET",
        f"{start}/{'a' * 60}SECRET",
        f"{start}/cat.png\\?SECRET",
        start.replace("://", "://user:SECRET@") + "/?SECRET",
        f"http://user:SECRET/SECRET@a{start}",
    ):
        assert "SECRET" not in refusal(url, rules)


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_what_is_shown_is_short_and_on_one_line(url: str) -> None:
    line = shown(url)
    assert line.isprintable()
    assert len(ast.literal_eval(line).removeprefix("...")) <= 60


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(["data:", "data:image/png;base64,", "file:///", "http://", "https://a.example:2/", ""]), st.text())
def test_only_image_errors_of_one_line(start: str, rest: str) -> None:
    """Whatever a client sends."""
    try:
        picture_bytes(start + rest, PictureRules(hosts=("a.example:1",), folder=Path("/")))
    except ImageError as error:
        assert len(str(error).splitlines()) == 1
        assert "; " in str(error)
