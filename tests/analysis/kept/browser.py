"""A headless Chromium that is told what to do through a pipe (the DevTools protocol), so that a test needs no other package.

Messages are JSON that ends with a NUL byte; the browser reads them from descriptor 3 and writes to descriptor 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}
_PATIENCE = 60  # seconds
# Both descriptors may be 3 or 4 already: they go out of the way first.
_START = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(text), fcntl.F_DUPFD, 10) for text in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser() -> str | None:
    """Of the names that it goes by."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page in it; ``requests`` are the addresses that it asked for."""

    def __init__(self, program: str, profile: Path) -> None:
        self._reading, writes = os.pipe()
        reads, self._writing = os.pipe()
        command = [
            *(sys.executable, "-c", _START, str(reads), str(writes)),
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
            *("--disable-dev-shm-usage", "--disable-background-networking"),
            *(f"--user-data-dir={profile}", "--window-size=900,900", "about:blank"),
        ]
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(reads, writes), stdout=silent, stderr=silent, stdin=silent)
        os.close(reads)
        os.close(writes)
        self._received, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.problems: list[str] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._writing)  # which ends it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._reading)

    def open(self, file: Path) -> None:
        self._call("Page.navigate", url=file.as_uri())
        self._wait_for(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Of JavaScript, in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of the first such element, in pixels of the window."""
        box = self.value(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
        return box["left"], box["top"], box["width"], box["height"]

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key])

    def move(self, x: float, y: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def prefer(self, scheme: str) -> None:
        """Dark or light."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run_scripts(self, allowed: bool) -> None:
        """Of pages that are opened from now on."""
        self._call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def screenshot(self) -> bytes:
        """PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number, session = self._number, {"sessionId": self._session} if self._session else {}
        message = json.dumps({"id": number, "method": method, "params": parameters, **session})
        os.write(self._writing, message.encode() + b"\0")
        answer = self._wait_for(lambda message: message.get("id") == number)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def _wait_for(self, wanted: Any) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while True:
            while b"\0" not in self._received:
                ready, _, _ = select.select([self._reading], [], [], max(0, until - time.monotonic()))
                part = os.read(self._reading, 1 << 16) if ready else b""
                assert part, "the browser ended or does not answer"
                self._received += part
            text, self._received = self._received.split(b"\0", 1)
            message: dict[str, Any] = json.loads(text)
            self._note(message)
            if wanted(message):
                return message

    def _note(self, message: dict[str, Any]) -> None:
        method, said = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(said))
