"""Rules that mean nothing are refused when they are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.errors import RequestError
from sts_export.serving.pictures.rules import PictureRules


def test_by_default_nothing_is_fetched_or_read() -> None:
    rules = PictureRules()
    assert rules.folder is None
    assert not rules.allow("images.example.org", 443)


def test_any_entry_allows() -> None:
    rules = PictureRules(hosts=("a.example", "*.b.example"))
    assert rules.allow("a.example", 443) and rules.allow("x.b.example", 80)
    assert not rules.allow("b.example", 443)


def test_a_malformed_host_is_refused() -> None:
    with pytest.raises(RequestError, match="is no host to allow"):
        PictureRules(hosts=("https://images.example.org",))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (tmp_path / "missing", file):
        with pytest.raises(RequestError, match="is no folder of pictures"):
            PictureRules(folder=folder)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(seconds: float) -> None:
    with pytest.raises(RequestError, match="are no time"):
        PictureRules(seconds=seconds)


def test_no_bytes_are_refused() -> None:
    with pytest.raises(RequestError, match="too few"):
        PictureRules(most_bytes=0)
