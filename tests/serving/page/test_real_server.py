"""The page in a browser, of `sts-export serve` with the demo model: from the start of the process to the kept tokens."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sts_export import Pipeline
from sts_export.exporting.exporter import ExportRequest, export
from tests.serving.page.driving import PICTURE, QUESTION, Open, answered, ask, choose_budget, expect, squares
from tests.support.scheduling.processes import started


class RealServer:
    """What the fixture of pages needs of a server."""

    info: ClassVar[dict[str, Any]] = {"model": "demo"}
    is_loading = False

    def __init__(self, bundle: Path) -> None:
        options = ["--port", "0", "--threads", "1", "--slots", "2", "--model-name", "demo"]
        self._command = [sys.executable, "-m", "sts_export.cli", "serve", str(bundle), *options]
        self._process = ExitStack()

    def start(self) -> None:
        _, address = self._process.enter_context(started(self._command))
        self.address = f"{address}/"

    def stop(self) -> None:
        self._process.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo model, for two pictures."""
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    return export(ExportRequest("demo", folder, budget="64", max_visual_tokens=1152)).folder


@pytest.mark.slow
def test_ask_and_see_what_was_kept(bundle: Path, opened: Open) -> None:
    page, _ = opened(RealServer(bundle))
    page.locator("#examples button").first.click()
    expect(page.locator("figure")).to_have_count(1)
    ask(page)
    answered(page)
    with Pipeline(bundle, threads=1) as pipeline:
        wanted = pipeline.generate(QUESTION, PICTURE)
        less = pipeline.generate(QUESTION, PICTURE, budget=32)
    expect(page.locator(".answer")).to_have_text(wanted.text.strip())
    assert squares(page, "kept") == {*wanted.kept_stage2}
    assert squares(page, "kept") | squares(page, "inside") == {*wanted.kept_stage1[0]}
    choose_budget(page, -1)
    page.locator("#again").click()
    answered(page, 2)
    expect(page.locator(".answer")).to_have_text(less.text.strip())
    assert squares(page, "kept") == {*less.kept_stage2}
    # A later turn, which goes on behind the rows of the picture.
    ask(page, "And how many shapes are there?")
    expect(page.locator(".turn .facts").nth(1)).to_contain_text("visual tokens")
    assert squares(page, "kept") and squares(page, "kept") | squares(page, "inside") == {*less.kept_stage1[0]}
    expect(page.locator("#error")).to_be_empty()
