"""Connections: not too many of them, and none that waits for ever.

uvicorn closes a connection that is idle between two requests, and bounds the bytes of a head.  Its limit of connections
(``limit_concurrency``) refuses requests, whoever sends them, and closes nothing; a connection whose first head never comes, or
whose client reads nothing, stays.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from sts_export.serving.settings import Settings


class ServerConfig(uvicorn.Config):
    """uvicorn's, with the operator's settings.

    Args:
        app: of ASGI.
        drain: seconds that answers under way have when the server ends.
    """

    def __init__(self, app: Any, settings: Settings, drain: float) -> None:
        seconds = max(1, round(drain))
        own: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        # The application needs no start or end of its own, and waiting for one logs a traceback when it is interrupted.
        own["lifespan"] = "off"
        super().__init__(app, http=Connection, ws="none", timeout_graceful_shutdown=seconds, **own)
        self.settings = settings


class Connection(H11Protocol):
    """A client's.  It is idle while it waits for the head of a request.

    Where there are too many, the one that has been idle the longest is closed; this is the new one where all others are busy.
    """

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], **options: Any) -> None:
        super().__init__(config, server_state, app_state, **options)
        assert isinstance(config, ServerConfig)
        self._settings = config.settings
        self._idle_since, self._is_dropped = 0.0, False
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._await_head()
        if len(self.connections) > self._settings.most_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_idle:
            self._await_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Told when the client has not taken what was sent."""
        super().pause_writing()
        self._reader = self.loop.call_later(self._settings.most_silence, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """From its first byte on, or from the connection's start: more bytes do not put the end off."""
        if self._head is None:
            self._head = self.loop.call_later(self._settings.longest_head, self._drop)

    def _make_room(self) -> None:
        there = [one for one in self.connections if isinstance(one, Connection) and not one._is_dropped]
        if len(there) > self._settings.most_connections:
            min((one for one in there if one.is_idle), key=lambda one: one._idle_since)._drop()

    def _drop(self) -> None:
        """At once: a transport that is closed still waits for its client to read."""
        self._is_dropped = True  # it is among the connections until the loop's next round
        self.transport.abort()
