"""Both ends of a MongoDB connection, as far as stories need them: a client over any stream, a server on loopback.

Belongs here: their messages, read and written by PyMongo's own codec. Does not belong here: what is between the two.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import bson
from cryptography import x509
from cryptography.x509.oid import NameOID

from monoport.auth import keys
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls, serve_tls

from .cluster import Cluster

HEADER = struct.Struct("<iiii")
MSG, QUERY, REPLY = 2013, 2004, 1
HELLO = {
    "isWritablePrimary": True, "maxBsonObjectSize": 16777216, "maxMessageSizeBytes": 48000000,
    "maxWriteBatchSize": 100000, "minWireVersion": 0, "maxWireVersion": 21, "readOnly": False, "ok": 1.0,
    # of a replica set, which no driver must follow
    "setName": "rs0", "hosts": ["real-1.internal:27017", "real-2.internal:27017"], "primary": "real-1.internal:27017",
    "me": "real-1.internal:27017", "topologyVersion": {"counter": 1}, "saslSupportedMechs": ["SCRAM-SHA-256"],
}  # fmt: skip
Document = dict[str, Any]


def op_msg(
    document: Document, request_id: int = 1, *, flags: int = 0, response_to: int = 0, more: bytes = b""
) -> bytes:
    """An OP_MSG of one body, `more` sections behind it."""
    body = struct.pack("<I", flags) + b"\0" + bson.encode(document) + more
    return HEADER.pack(16 + len(body), request_id, response_to, MSG) + body


def sequence(name: str, *documents: Document) -> bytes:
    """A section of kind 1."""
    inside = name.encode() + b"\0" + b"".join(map(bson.encode, documents))
    return b"\1" + struct.pack("<i", 4 + len(inside)) + inside


def op_query(document: Document, request_id: int = 1, collection: str = "admin.$cmd") -> bytes:
    """An OP_QUERY."""
    body = bytes(4) + collection.encode() + b"\0" + struct.pack("<ii", 0, -1) + bson.encode(document)
    return HEADER.pack(16 + len(body), request_id, 0, QUERY) + body


def document_of(message: bytes) -> Document:
    """The one document of an OP_MSG or OP_REPLY."""
    start = 21 if HEADER.unpack_from(message)[3] == MSG else 36
    found: Document = bson.decode(message[start : start + int.from_bytes(message[start : start + 4], "little")])
    return found


async def read_message(stream: Stream) -> bytes:
    """One whole message."""
    head = await stream.read_exactly(16)
    return head + await stream.read_exactly(HEADER.unpack(head)[0] - 16)


def opening(user: str, database: str) -> bytes:
    """All that a client says before it waits for the server; it names no database."""
    ahead = {"authenticate": 1, "mechanism": "MONGODB-X509", "user": f"CN={user}", "db": "$external"}
    metadata = {"driver": {"name": database, "version": "1"}}
    return op_msg({"hello": 1, "client": metadata, "speculativeAuthenticate": ahead, "$db": "admin"})


Answer = Callable[[Stream, bytes, Document], Awaitable[None]]


async def echo(stream: Stream, message: bytes, asked: Document) -> None:
    """Answer a command with its own name."""
    request = HEADER.unpack_from(message)[1]
    await stream.write(op_msg({"ran": next(iter(asked)), "ok": 1.0}, 1000 + request, response_to=request))


class Mongo:
    """A MongoDB client over a stream, as a driver is one: a hello, then commands."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._requests = 0

    async def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """TLS at once: MongoDB has no request for it."""
        self.stream = await connect_tls(self.stream, context, server_hostname=host)

    async def hello(self, user: str) -> Document:
        """What a driver opens with, who it wants to be in it."""
        ahead = {"authenticate": 1, "mechanism": "MONGODB-X509", "user": f"CN={user}", "db": "$external"}
        return await self.run({"hello": 1, "speculativeAuthenticate": ahead, "$db": "admin"})

    async def run(self, command: Document) -> Document:
        """Send a command and return the answer to it."""
        self._requests += 1
        await self.stream.write(op_msg(command, self._requests))
        return await self.answer()

    async def answer(self) -> Document:
        """What comes next; it must answer the last request."""
        message = await read_message(self.stream)
        assert HEADER.unpack_from(message)[2] == self._requests
        return document_of(message)


class Server:
    """Says hello, takes the agent's certificate, and gives everything else to `answer`."""

    def __init__(self, context: ssl.SSLContext, answer: Answer = echo) -> None:
        self._context = context
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port = int(self._listening.getsockname()[1])
        self.users: list[str] = []  # who has authenticated
        self.asked: list[Document] = []  # commands behind that
        self.hello: Document = dict(HELLO)
        self.authenticate: Document = {"ok": 1.0}

    @classmethod
    @asynccontextmanager
    async def running(cls, cluster: Cluster, answer: Answer = echo) -> AsyncIterator[Self]:
        """A server whose certificate the cluster's database CA has signed."""
        key = keys.generate()
        signed = await cluster.admin.sign_database_server(["localhost"], key.public)
        async with cls.with_files(signed.certificate, key.private, "".join(signed.cas.dbclient), answer) as made:
            yield made

    @classmethod
    @asynccontextmanager
    async def with_files(cls, certificate: str, key: str, clients: str, answer: Answer = echo) -> AsyncIterator[Self]:
        """The same with certificate, key and CA of clients as PEM."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        keys.load_chain(context, certificate, key)
        context.load_verify_locations(cadata=clients)
        context.verify_mode = ssl.CERT_OPTIONAL  # the agent's health probe shows none
        made = cls(context, answer)
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
            async with await serve_tls(raw, self._context) as stream:
                while True:
                    message = await read_message(stream)
                    await self._one(stream, message, document_of(message), _common_name(stream.peer_certificate))
        except ConnectionError:
            raw.abort()

    async def _one(self, stream: Stream, message: bytes, asked: Document, certified: str) -> None:
        request = HEADER.unpack_from(message)[1]
        name = next(iter(asked))
        if name == "hello":
            await stream.write(op_msg(self.hello, response_to=request))
        elif name == "authenticate":
            self.users.append(certified)
            await stream.write(op_msg(self.authenticate, response_to=request))
        else:
            self.asked.append(asked)
            await self._answer(stream, message, asked)


def _common_name(certificate: bytes | None) -> str:
    if certificate is None:
        return ""
    (name,) = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)
