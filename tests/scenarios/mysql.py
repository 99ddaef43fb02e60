"""Both ends of a MySQL connection, as far as stories need them: a client over any stream, a server on loopback.

Belongs here: their messages. Does not belong here: what is between the two, which is what the stories are about.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from cryptography import x509
from cryptography.x509.oid import NameOID

from monoport.auth import keys
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls, serve_tls
from monoport.wire.mysql.front import ANNOUNCED
from monoport.wire.mysql.handshake import (
    NATIVE,
    NONCE,
    Answer,
    Greeting,
    ServerRefusal,
    read_answer,
    read_greeting,
)
from monoport.wire.mysql.packets import HEADER, Capability, packet, read_error

from .cluster import Cluster

BASIC = Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.PLUGIN_AUTH | Capability.TRANSACTIONS
VERSION = "10.11.6-MariaDB-scripted"
OK = b"\0\0\0\2\0\0\0"  # no rows, no id, autocommit, no warnings
NOBODY = b"\xff\x15\x04#28000Access denied"  # 1045


class Mysql:
    """A MySQL client over a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.number = 0  # of the next packet
        self.greeting: Greeting | None = None

    async def greeted(self) -> Greeting:
        """Read the greeting. Raises ServerRefusal."""
        self.greeting = read_greeting((await self.read())[1])
        return self.greeting

    async def encrypt(self, context: ssl.SSLContext, host: str, *, ahead: bytes = b"") -> None:
        """Ask for TLS and shake hands; `ahead` is sent in plaintext behind the request."""
        asking = Answer(BASIC | Capability.SSL).encode(tls_request=True)
        await self.stream.write(packet(self.number, asking) + ahead)
        self.number += 1
        self.stream = await connect_tls(self.stream, context, server_hostname=host)

    async def login(self, user: str = "alice", database: str = "", more: int = 0) -> bytes:
        """Say who we are, and return the payload of the server's OK. Raises ServerRefusal."""
        flags = Capability(BASIC | more | (Capability.CONNECT_WITH_DB if database else 0))
        await self.say(Answer(flags, user, database, plugin=NATIVE).encode())
        return await self.heard()

    async def query(self, statement: str) -> bytes:
        """Run a statement and return the first packet of the reply. Raises ServerRefusal."""
        return await self.command(b"\x03" + statement.encode())

    async def command(self, payload: bytes) -> bytes:
        """Send a command and return the first packet of the reply. Raises ServerRefusal."""
        self.number = 0
        await self.say(payload)
        return await self.heard()

    async def say(self, payload: bytes) -> None:
        """Send one packet."""
        await self.stream.write(packet(self.number, payload))
        self.number += 1

    async def heard(self) -> bytes:
        """Read one packet. Raises ServerRefusal."""
        _, payload = await self.read()
        if payload[:1] == b"\xff":
            raise ServerRefusal(*read_error(payload))
        return payload

    async def read(self) -> tuple[int, bytes]:
        """Read one packet: its number and payload."""
        number, payload = await read_packet(self.stream)
        self.number = number + 1
        return number, payload


Play = Callable[[Stream], Awaitable[None]]


class Server:
    """Lets users in by their certificate's name, and answers every command with OK, or as `play` does."""

    def __init__(self, context: ssl.SSLContext, play: Play | None = None) -> None:
        self._context = context
        self._play = play or ok_to_all
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self.users: list[str] = []  # who has logged in
        self.tried: list[str] = []  # who has said a name, let in or not
        self.answers: list[Answer] = []  # and what else they said
        self.threads = 100  # the number of the last thread
        self.capabilities = ANNOUNCED | Capability.SSL

    @classmethod
    @asynccontextmanager
    async def running(cls, cluster: Cluster) -> AsyncIterator[Self]:
        """As `tctl auth sign --format=db` sets one up: it trusts the CA of database clients alone."""
        key = keys.generate()
        signed = await cluster.admin.sign_database_server(["localhost"], key.public)
        async with cls.serving(signed.certificate, key.private, "".join(signed.cas.dbclient)) as made:
            yield made

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, certificate: str, key: str, authorities: str, play: Play | None = None
    ) -> AsyncIterator[Self]:
        """With these PEMs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys.load_chain(context, certificate, key)
        context.load_verify_locations(cadata=authorities)
        context.verify_mode = ssl.CERT_OPTIONAL  # the agent's health probe shows none
        made = cls(context, play)
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
            self.threads += 1
            greeting = Greeting(VERSION, self.threads, b"n" * NONCE, self.capabilities, NATIVE)
            await raw.write(packet(0, greeting.encode()))
            _, payload = await read_packet(raw)
            assert read_answer(payload, inside=False).wants_tls
            async with await serve_tls(raw, self._context) as stream:
                await self._session(stream, _common_name(stream.peer_certificate))
        except ConnectionError:
            raw.abort()

    async def _session(self, stream: Stream, certified: str) -> None:
        number, payload = await read_packet(stream)
        answer = read_answer(payload, inside=True)
        self.tried.append(answer.user)
        if answer.user != certified:
            await stream.write(packet(number + 1, NOBODY))
            return
        self.users.append(certified)
        self.answers.append(answer)
        await stream.write(packet(number + 1, OK))
        await self._play(stream)


async def ok_to_all(stream: Stream) -> None:
    """Say OK to every command until the client quits."""
    while (await read_packet(stream))[1][:1] != b"\1":
        await stream.write(packet(1, OK))


async def read_packet(stream: Stream) -> tuple[int, bytes]:
    """One packet's number and payload."""
    head = await stream.read_exactly(HEADER)
    size = int.from_bytes(head[:3], "little")
    return head[3], await stream.read_exactly(size) if size else b""


def _common_name(certificate: bytes | None) -> Any:
    if certificate is None:
        return ""
    (name,) = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return name.value
