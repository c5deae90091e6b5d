"""HEAD, which every server has to answer (RFC 9110, section 9.1) and which probes of load balancers ask with."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Heads:
    """ASGI middleware: HEAD is GET to everything behind it; uvicorn, which knows better, leaves the body out.

    The copy matters: uvicorn goes by the scope that it made.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
