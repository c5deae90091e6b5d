"""One JSON line a request, with its id; no text of a prompt unless that is asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sts_export.serving.metrics import Metrics
from sts_export.serving.problems import DRAINING, Problem

LOG = logging.getLogger("sts_export.serving")
_CRASHED = Problem(500, "the server failed at this request; its log says why", code="internal_error")
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, message, and what ``extra={"fields": {...}}`` adds."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {"time": when, "level": record.levelname.lower(), "message": record.getMessage(), **fields}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def start_logging() -> None:
    """Lines of this package and of uvicorn go to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("sts_export.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class Requests:
    """ASGI middleware: an id for every request, and a line and a count when its response is over.

    A handler adds to the line through ``request.state.fields``; ``request.state.arrived`` is time.perf_counter().
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        arrived, status = time.perf_counter(), 0
        fields: dict[str, Any] = {}
        scope.setdefault("state", {}).update(fields=fields, arrived=arrived)

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:  # by the server only, which ends and waits no longer; nobody else waits for this task
            if status == 0:
                await JSONResponse(DRAINING.body, DRAINING.status, {"Retry-After": "1"})(scope, receive, sent)
        except Exception:
            LOG.exception("a request failed unexpectedly", extra={"fields": {"id": request_id}})
            if status == 0:
                await JSONResponse(_CRASHED.body, _CRASHED.status)(scope, receive, sent)
        finally:
            # A route is known only once it was found; what clients make up is neither a label nor in the log.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.responded(route, status)
            milliseconds = round((time.perf_counter() - arrived) * 1e3, 1)
            line = {"id": request_id, "method": scope["method"], "route": route, "status": status, "ms": milliseconds}
            LOG.info("request", extra={"fields": {**line, **fields}})
