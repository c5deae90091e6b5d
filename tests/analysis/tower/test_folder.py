"""What counts as a picture of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.analysis.tower.folder import pictures_of
from sts_export.errors import ImageError
from sts_export.testing.checkpoints import random_image


def test_pictures_by_name_and_the_rest_skipped(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp"):
        random_image(0, (30, 30)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "more.png").mkdir()
    pictures, skipped = pictures_of(tmp_path)
    assert [file.name for file in pictures] == ["a.JPG", "b.png", "c.webp"]
    assert skipped == ["more.png", "notes.txt"]


def test_a_damaged_picture_is_refused(tmp_path: Path) -> None:
    random_image(0, (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"b\.png' is truncated or damaged"):
        pictures_of(tmp_path)


def test_no_picture_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageError, match="holds no picture; give one with PNG"):
        pictures_of(tmp_path)
    with pytest.raises(ImageError, match="is not a folder; give one that holds pictures"):
        pictures_of(tmp_path / "notes.txt")
