"""Bundles of the three families, which no test may change, and the page in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.analysis.kept.browser import find_browser
from tests.support.bundles import bundles, checkpoints

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.serving.page.driving import Open

__all__ = ["bundles", "checkpoints"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """A page of a fake server, or of another; what the console complains of, or what asks anybody else, fails the test."""
    closing: list[Callable[[], Any]] = []
    problems: list[str] = []
    asked: list[str] = []
    servers: list[str] = []

    from tests.serving.page.driving import expect
    from tests.serving.page.fake import FakeServer

    def open_page(server: Any = None, **context: Any) -> tuple[Page, Any]:
        server = server or FakeServer()
        server.start()
        own = browser.new_context(reduced_motion=context.pop("reduced_motion", "reduce"), **context)
        closing.extend([server.stop, own.close])
        page = own.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda request: asked.append(request.url))
        servers.append(server.address)
        page.goto(server.address)
        expect(page.locator("#model")).to_have_text("" if server.is_loading else server.info["model"])
        return page, server

    yield open_page
    for close in reversed(closing):
        close()
    assert [text for text in problems if "Failed to load resource" not in text] == []  # those are errors of the server
    assert [address for address in asked if not address.startswith(("data:", *servers))] == []
