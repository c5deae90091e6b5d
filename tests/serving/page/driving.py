"""What a user does on the page, in Chromium by Playwright; tests that import this are skipped where one of them is missing."""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sts_export.demo import PICTURES_DIR
from tests.analysis.kept.browser import NAMES, find_browser

MISSING = [name for name in ("playwright", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
if find_browser() is None:
    MISSING.append(f"a browser ({' or '.join(NAMES)} on the PATH)")
if MISSING:
    pytest.skip(f"the server's page is not tried in a browser: {', '.join(MISSING)} missing", allow_module_level=True)

from playwright.sync_api import Page, expect  # noqa: E402

from tests.serving.page.fake import SIDE  # noqa: E402

if TYPE_CHECKING:
    from tests.serving.page.fake import FakeServer

__all__ = ["expect"]

PICTURE, OTHER, THIRD = (PICTURES_DIR / f"scene-{number}.png" for number in range(3))
QUESTION = "What color is the square?"
Open = Callable[..., "tuple[Page, FakeServer]"]
expect.set_options(timeout=30_000)


def ask(page: Page, question: str = QUESTION) -> None:
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")


def answered(page: Page, answers: int = 1) -> None:
    expect(page.locator("#measured tbody")).to_have_count(answers)


def choose_budget(page: Page, steps: int) -> None:
    page.locator("#budget").focus()
    for _ in range(abs(steps)):
        page.keyboard.press("ArrowLeft" if steps < 0 else "ArrowRight")


def give(page: Page, kind: str, files: list[tuple[str, str, bytes]]) -> None:
    """A paste or drop of (name, media type, bytes)."""
    page.evaluate(
        """([kind, files]) => {
          const transfer = new DataTransfer();
          for (const [name, type, data] of files) {
            transfer.items.add(new File([Uint8Array.from(atob(data), (sign) => sign.charCodeAt())], name, { type }));
          }
          const options = { bubbles: true, cancelable: true, clipboardData: transfer, dataTransfer: transfer };
          document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
        }""",
        [kind, [(name, media_type, base64.b64encode(data).decode()) for name, media_type, data in files]],
    )


def squares(page: Page, layer: str) -> set[int]:
    """Numbers of the tokens in a layer of the first picture's drawing, of 24 columns."""
    path = page.locator(f".tokens .{layer}").first.get_attribute("d") or ""
    return {int(float(row)) * SIDE + int(float(column)) for column, row in re.findall(r"M([\d.]+) ([\d.]+)h", path)}
