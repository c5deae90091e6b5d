"""A server that answers as the real one does, without a model: what it says follows from the question's first word."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sts_export.demo import PICTURES_DIR
from sts_export.serving.page.files import CONTENT_SECURITY_POLICY, page_file
from sts_export.serving.problems import LOADING

INFO: dict[str, Any] = {
    "model": "demo",
    "key": False,
    "budget": "64",
    "budgets": ["8", "16", "32", "64"],
    "unpruned": False,
    "max_pictures": 2,
    "examples": [{"name": f"scene-{number}.png", "src": f"page/examples/scene-{number}.png"} for number in (0, 1, 2)],
}
SIDE = 24
TILED: list[dict[str, Any]] = [
    {"box": [0, 0, 1, 1], "rows": SIDE, "columns": SIDE, "first": 0},
    {"box": [0, 0, 1, 1], "rows": 30, "columns": 40, "first": SIDE**2},
]
REFUSAL = "the picture is damaged;\n copy it again"
_PATIENCE = 30  # seconds


class FakeServer:
    """Of one page; ``bodies`` are the requests so far, ``keys`` their API keys, and ``gone`` is set when a client goes away.

    Args:
        info: in place of INFO's entries.
        views: of every picture.
        is_loading: whether there is no model yet; to be changed by the test.
    """

    def __init__(
        self,
        info: Mapping[str, Any] | None = None,
        views: list[dict[str, Any]] | None = None,
        *,
        is_loading: bool = False,
    ) -> None:
        self.is_loading = is_loading
        self.info = {**INFO, **(info or {})}
        self.views = views or [{"box": [0, 0, 1, 1], "rows": SIDE, "columns": SIDE, "first": 0}]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.gone = threading.Event()
        app = FastAPI()
        app.add_api_route("/", self._index, response_class=Response)
        app.add_api_route("/page/info", self._info, response_class=Response)
        app.add_api_route("/page/examples/{name}", self._example, response_class=Response)
        app.add_api_route("/page/{name}", self._file, response_class=Response)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"], response_model=None)
        settings = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        until = time.monotonic() + _PATIENCE
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < until, "the fake server does not start"
            time.sleep(0.01)
        host, port = self._server.servers[0].sockets[0].getsockname()
        self.address = f"http://{host}:{port}/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_PATIENCE)

    @staticmethod
    async def _index() -> Response:
        return await FakeServer._file("index.html")

    @staticmethod
    async def _file(name: str) -> Response:
        found = page_file(name)
        if found is None:
            return Response(status_code=404)
        return Response(found[0], media_type=found[1], headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def _info(self) -> Response:
        return JSONResponse(LOADING.body, LOADING.status) if self.is_loading else JSONResponse(self.info)

    @staticmethod
    async def _example(name: str) -> Response:
        return Response((PICTURES_DIR / name).read_bytes(), media_type="image/png")

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        word = said(body).split()[0].lower()
        if word == "fail":
            error = {"message": REFUSAL, "type": "invalid_request_error", "param": None, "code": None}
            return JSONResponse({"error": error}, 400)
        if word == "crash":
            return Response("<h1>Bad Gateway</h1>", 502)
        return StreamingResponse(self._events(body, word), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any], word: str) -> AsyncIterator[bytes]:
        kept = self._kept(body)
        first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        yield event({**first, "sts": {"pictures": kept}} if body.get("return_kept") else first)
        answer = f"A red square – “{body.get('budget')}” of them.".split(" ")
        try:
            for number, piece in enumerate(answer):
                whole = event({"choices": [{"index": 0, "delta": {"content": f" {piece}" if number else piece}}]})
                yield whole[: len(whole) // 2]  # pieces end anywhere, within a letter, too
                yield whole[len(whole) // 2 :]
                if word == "break" and number == 1:
                    yield event({"error": {"message": "the engine failed; see its log", "type": "server_error"}})
                    return
                if word == "end" and number == 1:
                    return
                while word == "wait" and number == 1:
                    await asyncio.sleep(0.02)
        except (asyncio.CancelledError, GeneratorExit):
            self.gone.set()
            raise
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield event(self._last(body, kept))
        yield b"data: [DONE]\n\n"

    def _kept(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The first tokens of every view, so that a test knows them: 3 of the budget's in stage 1, 1 of it in stage 2."""
        budget = int(body.get("budget", "64").rstrip("%"))
        pictures = []
        for _ in range(count_pictures(body)):
            stage = {
                share: [view["first"] + token for view in self.views for token in range(share * budget)] for share in (3, 1)
            }
            pictures.append({"width": 336, "height": 336, "views": self.views, "stage1": stage[3], "stage2": stage[1]})
        return pictures

    def _last(self, body: dict[str, Any], kept: list[dict[str, Any]]) -> dict[str, Any]:
        total = len(kept) * sum(view["rows"] * view["columns"] for view in self.views)
        visual = {
            "total": total,
            "stage1": sum(len(picture["stage1"]) for picture in kept),
            "stage2": sum(len(picture["stage2"]) for picture in kept),
        }
        budget = int(body.get("budget", "64").rstrip("%"))
        timings = {"vision": 10.0, "select": 1.0, "first_token": 40.0 + budget, "decode_per_token": 8.0}
        usage = {"prompt_tokens": 20, "completion_tokens": 8, "visual_tokens": visual}
        return {"choices": [], "usage": usage, "sts": {"timings_ms": timings, "pictures": kept}}


def said(body: dict[str, Any]) -> str:
    """The last question's text."""
    text: str = body["messages"][-1]["content"][-1]["text"]
    return text


def count_pictures(body: dict[str, Any]) -> int:
    parts = [part for message in body["messages"] if message["role"] == "user" for part in message["content"]]
    return sum(part["type"] == "image_url" for part in parts)


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
