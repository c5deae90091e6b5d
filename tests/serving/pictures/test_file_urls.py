"""Files of one folder, and no way to learn what else a server has."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sts_export.errors import ImageError
from sts_export.serving.pictures.file_urls import file_bytes
from sts_export.serving.pictures.rules import PictureRules

PICTURE = b"picture"


@pytest.fixture
def rules(tmp_path: Path) -> PictureRules:
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    (folder / "cat.png").write_bytes(PICTURE)
    (folder / "inner" / "a b ä.png").write_bytes(PICTURE)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "pictures-of-others").mkdir()
    (tmp_path / "pictures-of-others" / "cat.png").write_bytes(b"secret")
    return PictureRules(folder=folder, most_bytes=len(PICTURE))


def refusal(url: str, rules: PictureRules) -> str:
    with pytest.raises(ImageError) as error:
        file_bytes(url, rules)
    return str(error.value)


def without_url(line: str) -> str:
    return line.rpartition("' is ")[2]


NOT_THERE = "no file in the server's folder of pictures; check the path"


def test_files_inside(rules: PictureRules) -> None:
    assert rules.folder is not None
    assert file_bytes(f"file://{rules.folder}/cat.png", rules) == PICTURE
    assert file_bytes(f"FILE://localhost{rules.folder}/cat.png", rules) == PICTURE
    assert file_bytes((rules.folder / "inner" / "a b ä.png").as_uri(), rules) == PICTURE  # percent-encoded by pathlib
    assert file_bytes(f"file://{rules.folder}/inner//./a b ä.png", rules) == PICTURE


def test_without_a_folder_nothing_is_read(rules: PictureRules) -> None:
    assert refusal(f"file://{rules.folder}/cat.png", PictureRules()).startswith("this server reads no files; send data:")


def test_what_is_outside_is_as_what_is_missing(rules: PictureRules, tmp_path: Path) -> None:
    folder = rules.folder
    assert folder is not None
    missing = without_url(refusal(f"file://{folder}/none.png", rules))
    assert missing == NOT_THERE
    for url in (
        f"file://{tmp_path}/secret",
        f"file://{tmp_path}/none",
        f"file://{folder}/../secret",
        f"file://{folder}/%2e%2e/secret",
        f"file://{folder}/inner/../cat.png",
        f"file://{folder}/..%2fsecret",
        f"file://{folder}-of-others/cat.png",
        f"file://{folder}/cat.png/more",
        f"file://{folder}/cat.png%00",
        f"file://{folder}/{'a' * 5000}",
        f"file://{folder}/\ud800",
        f"file://{folder}",
        f"file://{folder}/inner",
        f"file://{folder}/cat.png?size=1",
        f"file://{folder}/cat.png#top",
        f"file://other{folder}/cat.png",
        f"file://localhost.evil.test{folder}/cat.png",
        f"file:{folder}/cat.png",
        f"file:////{folder}/../secret",
        "file:///etc/passwd",
        "file:///proc/self/environ",
        "file:///",
        "file://",
        "file:cat.png",
        "file://cat.png",
    ):
        line = refusal(url, rules)
        assert "\n" not in line
        assert without_url(line) == missing, url


def test_links(rules: PictureRules, tmp_path: Path) -> None:
    folder = rules.folder
    assert folder is not None
    (folder / "same.png").symlink_to(folder / "inner" / "a b ä.png")
    (folder / "out.png").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    (folder / "dangling.png").symlink_to(folder / "none.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (tmp_path / "alias").symlink_to(folder)
    assert file_bytes(f"file://{folder}/same.png", rules) == PICTURE
    for name in ("out.png", "out/secret", "dangling.png", "circle.png"):
        assert without_url(refusal(f"file://{folder}/{name}", rules)) == NOT_THERE
    # The folder may be a link itself: its files have both names.
    aliased = PictureRules(folder=tmp_path / "alias", most_bytes=100)
    for spelled in (tmp_path / "alias", folder):
        assert file_bytes(f"file://{spelled}/cat.png", aliased) == PICTURE


def test_only_regular_files(rules: PictureRules) -> None:
    """A pipe that nobody writes to does not hold the server up."""
    folder = rules.folder
    assert folder is not None
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(folder)  # the path of a socket may have about 100 characters
            server.bind("socket.png")
        finally:
            os.fchdir(here)
            os.close(here)
        for name in ("pipe.png", "socket.png"):
            assert without_url(refusal(f"file://{folder}/{name}", rules)) == NOT_THERE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_access(rules: PictureRules) -> None:
    assert rules.folder is not None
    (rules.folder / "cat.png").chmod(0)
    assert without_url(refusal(f"file://{rules.folder}/cat.png", rules)) == NOT_THERE


def test_the_limit_is_exact(rules: PictureRules) -> None:
    assert rules.folder is not None
    (rules.folder / "large.png").write_bytes(PICTURE + b"!")
    assert refusal(f"file://{rules.folder}/large.png", rules) == "the picture is larger than 7 bytes; send a smaller one"


def test_nothing_stays_open(rules: PictureRules) -> None:
    folder = rules.folder
    assert folder is not None
    os.mkfifo(folder / "pipe.png")
    probe = os.dup(0)
    os.close(probe)
    for name in ("cat.png", "pipe.png", "inner"):
        url = f"file://{folder}/{name}"
        for _ in range(3):
            if name == "cat.png":
                file_bytes(url, rules)
            else:
                refusal(url, rules)
    again = os.dup(0)
    os.close(again)
    assert again <= probe  # the lowest free number
