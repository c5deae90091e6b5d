"""What browsers can be made to send: requests under another host's name, and those of other sites' pages."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sts_export.serving.hosts import HostRules
from sts_export.serving.problems import Problem

_READING = frozenset({"GET", "HEAD", "OPTIONS"})  # they change nothing, and no other site's page may read their answers
_OWN = frozenset({"same-origin", "none"})  # this server's page, or the user
_FOREIGN = Problem(
    403, "a page of another site sent this request; use this server's own page, or no browser", code="foreign_site"
)
_MOST_SHOWN = 80


class Origins:
    """ASGI middleware, inside of what makes ``state.fields``: such requests are refused.

    Pages of other sites are told as by Go's ``net/http.CrossOriginProtection``: by Sec-Fetch-Site, which no script can set and
    which holds behind any proxy; where the browser sends none, by Origin, whose host has to be the request's.
    """

    def __init__(self, app: ASGIApp, rules: HostRules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            scope["state"]["fields"]["error"] = problem.message
            await JSONResponse(problem.body, problem.status)(scope, receive, send)

    def _problem(self, method: str, headers: Headers) -> Problem | None:
        hosts = headers.getlist("host")
        if not self._rules.allow(hosts):
            shown = ascii(hosts[0][:_MOST_SHOWN]) if len(hosts) == 1 else f"{len(hosts)} Host headers"
            advice = "ask it by its own name or address, or name the host in --allowed-hosts"
            return Problem(400, f"this server is not asked by {shown}; {advice}", code="wrong_host")
        return _FOREIGN if method not in _READING and _is_foreign(headers) else None


def _is_foreign(headers: Headers) -> bool:
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in _OWN
    origin, host = headers.get("origin"), headers.get("host", "").lower()
    return origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}")
