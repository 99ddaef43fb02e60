"""A PostgreSQL server of a few lines, for what the real one never does.

Belongs here: playing a server's part on a socket, step by step, as a test says.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from monoport.auth.keys import load_chain
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import serve_tls
from monoport.wire.postgres.messages import SSL_REQUEST, backend_key_data, message

from .world import Cluster

OK = message(b"R", struct.pack("!I", 0))
READY = message(b"Z", b"I")
KEY = backend_key_data(4711, b"real")
Play = Callable[[Stream], Awaitable[None]]


class Script:
    """Plays `play` for every connection, behind TLS unless `answer` to SSLRequest begins with another byte."""

    def __init__(self, cluster: Cluster, play: Play, answer: bytes = b"S", host: str = "localhost") -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key, clients = cluster.database_server(host)
        load_chain(self._context, certificate, key)
        self._context.load_verify_locations(cadata=clients)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._play = play
        self._answer = answer
        self.port = 0
        self.openings: list[bytes] = []  # first packets that came behind TLS

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Script]:
        """Listen on a free port of loopback while the block runs."""
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        with listening:
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(listening, group))
                yield self
                accepting.cancel()

    async def _accept(self, listening: socket.socket, group: asyncio.TaskGroup) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listening)
            group.create_task(self._serve(SocketStream(sock)))

    async def _serve(self, raw: Stream) -> None:
        try:
            assert await raw.read_exactly(8) == SSL_REQUEST
            await raw.write(self._answer)
            if self._answer[:1] != b"S":
                await raw.read()
                raw.close()
                return
            stream = await serve_tls(raw, self._context)
            packet = await read_packet(stream)
            self.openings.append(packet)
            stream.unread(packet)
            await self._play(stream)
            stream.close()
        except ConnectionError:
            raw.abort()


async def read_packet(stream: Stream) -> bytes:
    """A packet of the opening: length, then the rest."""
    head = await stream.read_exactly(4)
    return head + await stream.read_exactly(int.from_bytes(head, "big") - 4)


async def read_message(stream: Stream) -> tuple[bytes, bytes]:
    """A message's type and body."""
    head = await stream.read_exactly(5)
    return head[:1], await stream.read_exactly(int.from_bytes(head[1:], "big") - 4)
