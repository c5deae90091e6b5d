"""Load a bundle, serve it, and end in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from sts_export.errors import RequestError, StsExportError
from sts_export.serving.api.app import create_app
from sts_export.serving.api.chat import PictureReader
from sts_export.serving.connections import ServerConfig
from sts_export.serving.hosts import HostRules, usual_rules
from sts_export.serving.logs import LOG
from sts_export.serving.service import Engine, Service

_MOST_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Place:
    """Where a server listens, and how long it waits for answers under way when it ends.

    Args:
        port: 0 takes a free one.
        drain: seconds.

    Raises:
        RequestError: no number of seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.drain <= _MOST_SECONDS:
            raise RequestError(f"--drain must be from 0 to {_MOST_SECONDS} seconds, not {self.drain}")

    @property
    def hosts(self) -> HostRules:
        """What requests may name where the operator says nothing.

        Raises:
            RequestError: there is no such address.
        """
        return usual_rules(self.host, _address(self)[1])


def serve(service: Service, load: Callable[[], Engine], picture: PictureReader, place: Place) -> None:
    """Until a signal ends it.  While the model is loaded, requests are told so.

    Args:
        load: opens the pipeline and its scheduler; both are closed here.

    Raises:
        RequestError: the address cannot be had.
        StsExportError: as ``load`` raises.
    """
    sock = _listen(place)
    try:
        asyncio.run(_serve(service, load, picture, place, sock))
    finally:
        sock.close()


async def _serve(
    service: Service, load: Callable[[], Engine], picture: PictureReader, place: Place, sock: socket.socket
) -> None:
    server = _Server(
        service,
        ServerConfig(create_app(service, picture), service.settings, place.drain),
    )
    loading = asyncio.ensure_future(asyncio.to_thread(load))
    loading.add_done_callback(lambda task: server.loaded(task, sock))
    try:
        await server.serve([sock])
    finally:
        if not loading.done():
            LOG.info("waiting until the model is loaded, to close it")
        with contextlib.suppress(StsExportError):
            engine = await loading
            # Nobody waits any more: answers of clients that were cut off end here.
            await asyncio.to_thread(engine.scheduler.close, drain=False)
            engine.pipeline.close()
    await loading  # raises what loading raised


class _Server(uvicorn.Server):
    """Ends when loading fails; not ready as soon as it is told to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, with SIGHUP, and not raised again afterwards: what is still to be closed must not be interrupted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    def loaded(self, task: asyncio.Task[Engine], sock: socket.socket) -> None:
        """Requests are answered from now on."""
        if task.cancelled() or task.exception() is not None:
            self.should_exit = True
        if self.should_exit:  # the socket may be closed, and the engine is about to be
            return
        engine = self._service.engine = task.result()
        host, port = sock.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        fields = {"address": address, "model": self._service.settings.model, "slots": engine.scheduler.load.slots}
        LOG.info("ready", extra={"fields": fields})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.draining = True
        await super().shutdown(sockets)


def _listen(place: Place) -> socket.socket:
    family, _ = _address(place)
    try:
        # asyncio turns Nagle's algorithm off only where it is told that the protocol is TCP.  With it a stream's first pieces
        # wait for the client's delayed acknowledgement of the head, 40 ms, on connections that are kept.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise _no_address(place, error) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((place.host, place.port))
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        what = f"cannot listen at {place.host} port {place.port} ({reason})"
        raise RequestError(f"{what}; choose another --port or --host") from None
    return sock


def _address(place: Place) -> tuple[socket.AddressFamily, str]:
    """The kind of a place's address, and the address without its port."""
    try:
        family, *_, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_address(place, error) from None
    return family, str(address[0])


def _no_address(place: Place, error: Exception) -> RequestError:
    return RequestError(f"{place.host} port {place.port} is no address ({error}); correct --host or --port")
