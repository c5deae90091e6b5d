"""What the modules of a package offer is found without a list."""

from __future__ import annotations

from pathlib import Path

import pytest

from sts_export.discovery import members


def test_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_plugins"
    folder.mkdir()
    for name, text in {"__init__": "", "b": "THING = 2", "a": "THING = 1", "helper": "OTHER = 3"}.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "notes.txt").write_text("THING = 4")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert members("some_plugins", "THING") == {"a": 1, "b": 2}
    assert list(members("some_plugins", "THING")) == ["a", "b"]
    assert members("some_plugins", "NOTHING") == {}
