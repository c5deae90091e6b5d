"""The socket that a server listens at."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sts_export.serving.server import Place, _listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_small_pieces_do_not_wait_for_acknowledgements(host: str) -> None:
    """asyncio sets TCP_NODELAY on accepted connections only where the listening socket names its protocol."""

    async def option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                found.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with _listen(Place(host, 0)) as sock:
            server = await asyncio.get_running_loop().create_server(Taken, sock=sock)
            _, writer = await asyncio.open_connection(host, sock.getsockname()[1])
            try:
                return await found
            finally:
                writer.close()
                server.close()

    assert asyncio.run(option()) != 0
