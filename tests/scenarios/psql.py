"""Both ends of a PostgreSQL connection, as far as stories need them: a client over any stream, a server on loopback.

Belongs here: their messages. Does not belong here: what is between the two, which is what the stories are about.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from cryptography import x509
from cryptography.x509.oid import NameOID

from monoport.auth import keys
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls, serve_tls
from monoport.wire.postgres.messages import (
    SSL_REQUEST,
    StartupMessage,
    backend_key_data,
    message,
    parse_error,
    parse_opening,
)

from .cluster import Cluster


class Said(Exception):
    """What the other side reports as an error."""


class Psql:
    """A PostgreSQL client over a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.key = b""

    async def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Ask for TLS in PostgreSQL's own way (SSLRequest), then shake hands."""
        await self.stream.write(SSL_REQUEST)
        assert await self.stream.read_exactly(1) == b"S"
        self.stream = await connect_tls(self.stream, context, server_hostname=host)

    async def login(self, user: str = "alice", database: str = "app") -> None:
        """Say who we are and wait until the server is ready. Raises Said."""
        await self.stream.write(StartupMessage(0, {"user": user, "database": database}).encode())
        await self._until_ready()

    async def query(self, statement: str) -> list[str]:
        """Run a statement and return the rows."""
        await self.stream.write(message(b"Q", statement.encode() + b"\0"))
        return await self._until_ready()

    async def _until_ready(self) -> list[str]:
        rows = []
        while True:
            kind, body = await read_message(self.stream)
            match kind:
                case b"E":
                    raise Said(parse_error(body)["M"])
                case b"K":
                    self.key = body
                case b"D":
                    rows.append(body[6:].decode())  # one column: after their number and its length
                case b"Z":
                    return rows


class Server:
    """Answers every statement with one row: who asks, by its certificate, and what."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self.users: list[str] = []  # who has logged in

    @classmethod
    @asynccontextmanager
    async def running(cls, cluster: Cluster) -> AsyncIterator[Self]:
        """As `tctl auth sign --format=db` sets one up: it trusts the CA of database clients alone."""
        key = keys.generate()
        signed = await cluster.admin.sign_database_server(["localhost"], key.public)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys.load_chain(context, signed.certificate, key.private)
        context.load_verify_locations(cadata="".join(signed.cas.dbclient))
        context.verify_mode = ssl.CERT_OPTIONAL  # the agent's health probe shows none
        made = cls(context)
        with made._listening:
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(made._accept())
                yield made
                accepting.cancel()

    async def _accept(self) -> None:
        async with asyncio.TaskGroup() as sessions:  # which end with it
            while True:
                accepted, _ = await asyncio.get_running_loop().sock_accept(self._listening)
                sessions.create_task(self._serve(SocketStream(accepted)))

    async def _serve(self, raw: Stream) -> None:
        try:
            assert await raw.read_exactly(len(SSL_REQUEST)) == SSL_REQUEST
            await raw.write(b"S")
            async with await serve_tls(raw, self._context) as stream:
                await self._session(stream, _common_name(stream.peer_certificate))
        except ConnectionError:
            raw.abort()

    async def _session(self, stream: Stream, certified: str) -> None:
        startup = await _startup(stream)
        assert startup.user == certified  # as PostgreSQL's `cert` method has it
        self.users.append(certified)
        ready = message(b"Z", b"I")
        await stream.write(message(b"R", bytes(4)) + backend_key_data(4711, b"real") + ready)
        while (asked := await read_message(stream))[0] == b"Q":
            row = f"{certified}: {asked[1][:-1].decode()}".encode()
            data = message(b"D", b"\0\1" + len(row).to_bytes(4, "big") + row)
            await stream.write(data + message(b"C", b"SELECT 1\0") + ready)


async def read_message(stream: Stream) -> tuple[bytes, bytes]:
    """One message's type and body."""
    head = await stream.read_exactly(5)
    return head[:1], await stream.read_exactly(int.from_bytes(head[1:], "big") - 4)


async def _startup(stream: Stream) -> StartupMessage:
    head = await stream.read_exactly(4)
    found = parse_opening(head + await stream.read_exactly(int.from_bytes(head, "big") - 4))
    assert found is not None
    assert isinstance(found[0], StartupMessage)
    return found[0]


def _common_name(certificate: bytes | None) -> str:
    if certificate is None:
        return ""
    (name,) = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)
