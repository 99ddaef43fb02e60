"""The MongoDB engine against a server that a test plays: what a real one never does, and what clients should not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from monoport.agents.database import mongodb_exchange
from monoport.agents.database.mongodb_exchange import Room
from monoport.audit.outage import NotRecorded
from monoport.config.model import Database as Configured
from monoport.net.memory import pair
from monoport.net.stream import LIMIT, Stream
from monoport.tunnel.preface import Kind, Preface
from monoport.wire.mongodb.messages import crc32c

from ...scenarios.mongo import (  # noqa: TID252
    HEADER,
    Document,
    Server,
    document_of,
    echo,
    op_msg,
    op_query,
    opening,
    read_message,
    sequence,
)
from .world import Cluster, World, world

PATIENCE = 20.0  # seconds for what takes none


@dataclass
class Client:
    """One session, as the agent serves it."""

    stream: Stream
    world: World
    server: Server
    serving: asyncio.Task[None]

    async def ask(self, document: Document, request_id: int = 5, **how: Any) -> Document:
        """Send a command and return its answer."""
        await self.stream.write(op_msg({**document, "$db": "app"} | document, request_id, **how))
        return await self.answer(request_id)

    async def answer(self, request_id: int) -> Document:
        async with asyncio.timeout(PATIENCE):
            message = await read_message(self.stream)
        assert HEADER.unpack_from(message)[2] == request_id
        return document_of(message)

    async def rest(self) -> bytes:
        """All that still comes."""
        found = b""
        async with asyncio.timeout(PATIENCE):
            try:
                while data := await self.stream.read():
                    found += data
            except ConnectionError:
                return found
        return found


@asynccontextmanager
async def session(
    cluster: Cluster,
    answer: Callable[..., Awaitable[None]] = echo,
    first: bytes = opening("alice", "app"),
    **hello: Any,
) -> AsyncIterator[Client]:
    """A session of alice on a scripted server, behind its hello."""
    async with Server.with_files(*cluster.database_server("localhost"), answer) as server:
        server.hello |= hello
        async with world(cluster, _orders(server.port)) as made, asyncio.TaskGroup() as group:
            near, far = pair()
            certificate = cluster.user().certificate
            preface = Preface("c-1", Kind.DATABASE, "orders", certificate, "192.0.2.1:1", user="alice")
            serving = group.create_task(_serve(made, preface, far))
            size = int.from_bytes(await near.read_exactly(4), "big")
            assert b"true" in await near.read_exactly(size)  # accepted
            await near.write(first)
            client = Client(near, made, server, serving)
            yield client
            near.abort()


def _orders(port: int) -> Configured:
    return Configured.model_validate({"name": "orders", "protocol": "mongodb", "uri": f"localhost:{port}"})


async def _serve(made: World, preface: Preface, far: Stream) -> None:
    try:
        await made.agent.serve(preface, far)
        far.close()
    except ConnectionError:
        far.abort()


async def test_hello_is_the_server_s_own_but_for_other_servers_names(cluster: Cluster) -> None:
    async with session(cluster, isWritablePrimary=False, secondary=True) as client:
        said = await client.answer(1)
        assert said["secondary"] is True
        assert not {"setName", "hosts", "me", "primary", "topologyVersion", "saslSupportedMechs"} & set(said)
        client.server.hello |= {"isWritablePrimary": True, "secondary": False}
        again = await client.ask({"hello": 1, "loadBalanced": True, "speculativeAuthenticate": {"saslStart": 1}})
        assert (again["isWritablePrimary"], again["secondary"]) == (True, False)
        assert len(again["serviceId"].binary) == 12
        await client.stream.write(op_query({"isMaster": 1}, 9))
        assert (await client.answer(9))["ismaster"] is True
        assert client.server.users == ["alice"]


async def test_a_second_hello_changes_nothing_of_who_one_is(cluster: Cluster) -> None:
    async with session(cluster) as client:
        await client.answer(1)
        await client.stream.write(opening("root", "app"))
        assert (await client.answer(1))["ok"] == 1.0
        assert (await client.ask({"find": "c"}))["ran"] == "find"
        assert client.server.users == ["alice"]
        (ran,) = client.world.events("db.query")
        assert ran["db_user"] == "alice"


async def test_byte_by_byte_and_all_at_once(cluster: Cluster) -> None:
    async with session(cluster) as client:
        await client.answer(1)
        data = op_msg({"insert": "c", "$db": "app"}, 5, more=sequence("documents", {"n": 1}))
        for octet in data:
            await client.stream.write(bytes((octet,)))
        assert (await client.answer(5))["ran"] == "insert"
        await client.stream.write(b"".join(op_msg({"ping": 1, "$db": "app"}, n) for n in range(10, 20)))
        for n in range(10, 20):
            assert (await client.answer(n))["ran"] == "ping"


async def test_checksums_are_looked_at(cluster: Cluster) -> None:
    async with session(cluster) as client:
        await client.answer(1)
        data = op_msg({"find": "c", "$db": "app"}, 5, flags=1, more=bytes(4))
        good = data[:-4] + struct.pack("<I", crc32c(data[:-4]))
        await client.stream.write(good)
        assert (await client.answer(5))["ran"] == "find"
    async with session(cluster) as client:
        await client.answer(1)
        await client.stream.write(data)
        assert b"wrong checksum" in await client.rest()
        assert client.server.asked == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xff\xff\x7f", b"limit 48000000"),
        (op_msg({"find": "c"}, 5), b"names no $db"),
        (op_msg({"find": "c", "$db": "app"}, 5, response_to=3), b"is a response"),
        (op_msg({"find": "c", "$db": "app"}, 5, more=b"\0" + b"\5\0\0\0\0"), b"two bodies"),
        (op_msg({"find": "c\0d", "$db": "app"}, 5), b"NUL"),
        (op_msg({"find": "c", "$db": "a\x1b[2J"}, 5), b"cannot be a database"),
        (op_msg({"find": "c", "$db": "x" * 64}, 5), b"expected 1 to 63"),
        (HEADER.pack(20, 5, 0, 2002) + bytes(4), b"no longer takes"),
    ],
)
async def test_what_breaks_the_protocol_never_reaches_the_server(cluster: Cluster, data: bytes, why: bytes) -> None:
    async with session(cluster) as client:
        await client.answer(1)
        await client.stream.write(data)
        said = await client.rest()
        assert why in said
        assert b"ProtocolError" in said
        await client.serving
        assert client.server.asked == []


async def test_old_queries_are_answered_in_their_own_form(cluster: Cluster) -> None:
    async with session(cluster) as client:
        await client.answer(1)
        await client.stream.write(op_query({"n": 1}, 6, "app.things"))
        said = await client.answer(6)
        assert said["codeName"] == "UnsupportedOpQueryCommand"
        assert (await client.ask({"ping": 1}))["ran"] == "ping"


async def test_a_server_that_breaks_off_in_a_document_is_no_clean_end(cluster: Cluster) -> None:
    async def break_off(stream: Stream, message: bytes, asked: Document) -> None:
        whole = op_msg({"rows": list(range(1000))}, 9, response_to=5)
        await stream.write(whole[:500])
        stream.abort()

    async with session(cluster, break_off) as client:
        await client.answer(1)
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5))
        with pytest.raises(ConnectionError):
            await client.stream.read_exactly(1000)


@pytest.mark.parametrize(
    "reply",
    [
        op_msg({"ok": 1.0}, 9, response_to=6),
        op_msg({"ok": 1.0}, 9, response_to=5) + b"more",
        HEADER.pack(-5, 9, 5, 2013) + bytes(4),
        HEADER.pack(1 << 30, 9, 5, 2013) + bytes(4),
        HEADER.pack(36, 9, 5, 1) + bytes(20),
    ],
)
async def test_a_server_that_answers_something_else_is_left(cluster: Cluster, reply: bytes) -> None:
    async def answer(stream: Stream, message: bytes, asked: Document) -> None:
        await stream.write(reply)

    async with session(cluster, answer) as client:
        await client.answer(1)
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5))
        await client.rest()
        async with asyncio.timeout(PATIENCE):
            await client.serving


async def test_a_client_that_leaves_takes_what_runs_for_it_along(cluster: Cluster) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def wait(stream: Stream, message: bytes, document: Document) -> None:
        asked.set()
        try:
            await stream.read()
        finally:
            gone.set()

    async with session(cluster, wait) as client:
        await client.answer(1)
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
            client.stream.close()
            await gone.wait()


async def test_a_client_that_never_reads_holds_no_more_than_the_limit(cluster: Cluster) -> None:
    """A reply of 40 MB: the server waits, not we."""
    written = 0
    full = asyncio.Event()

    async def much(stream: Stream, message: bytes, asked: Document) -> None:
        nonlocal written
        chunk = bytes(65_536)
        size = 40_000_000
        await stream.write(HEADER.pack(20 + size, 9, 5, 2013) + bytes(4))
        while written < size:
            async with asyncio.timeout(1.0):  # the socket's buffers are full, and nobody takes more
                await stream.write(chunk)
            written += len(chunk)

    async def until_full(stream: Stream, message: bytes, asked: Document) -> None:
        try:
            await much(stream, message, asked)
        except TimeoutError:
            full.set()
            await stream.read()

    async with session(cluster, until_full) as client:
        await client.answer(1)
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5))
        async with asyncio.timeout(PATIENCE):
            await full.wait()
        # What is on its way lies in the memory stream (LIMIT), in our own buffers (LIMIT) and in the kernel's sockets.
        assert written < 2 * LIMIT + 16_000_000


async def test_a_large_request_waits_for_room(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_exchange, "LARGE", 1000)
    async with session(cluster) as client:
        await client.answer(1)
        data = op_msg({"insert": "c", "$db": "app"}, 5, more=sequence("documents", {"pad": "x" * 300_000}))
        await client.stream.write(data[:100])
        await client.stream.write(data[100:])
        assert (await client.answer(5))["ran"] == "insert"
        assert (await client.ask({"ping": 1}))["ran"] == "ping"


async def test_room_is_given_back() -> None:
    room = Room(100)
    await room.take(80)
    async with asyncio.TaskGroup() as group:
        second = group.create_task(room.take(50))
        await asyncio.sleep(0)
        assert not second.done()
        await room.give(80)
    await room.give(50)
    await room.take(100)


async def test_a_request_that_never_gets_whole_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_exchange, "PATIENCE", 0.01)
    async with session(cluster) as client:
        await client.answer(1)
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5)[:-1])
        assert b"was not whole in time" in await client.rest()
        assert client.server.asked == []


async def test_a_session_that_ends_answers_what_runs(cluster: Cluster) -> None:
    asked = asyncio.Event()

    async def wait(stream: Stream, message: bytes, document: Document) -> None:
        asked.set()
        await stream.read()

    async with session(cluster, wait) as client:
        await client.answer(1)
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        for _, live in client.world.agent._sessions.values():
            live.end("locked: user alice")
        said = await client.answer(5)
        assert said["errmsg"] == "session ended: locked: user alice [connection c-1]"
        assert said["code"] == 13


async def test_what_cannot_be_recorded_is_not_run(cluster: Cluster) -> None:
    async with session(cluster) as client:
        await client.answer(1)

        async def full(_entries: object) -> None:
            raise NotRecorded

        client.world.agent_audit.emit_all = full  # type: ignore[method-assign]
        await client.stream.write(op_msg({"find": "c", "$db": "app"}, 5))
        said = await client.rest()
        assert f"the command could not be recorded: {NotRecorded()}".encode() in said
        assert client.server.asked == []


@pytest.mark.parametrize(
    ("authenticate", "lets_in"),
    [
        ({"ok": 0.0, "code": 59, "errmsg": "no such command: authenticate"}, True),
        ({"ok": 0.0, "code": 238, "errmsg": "not implemented"}, True),
        ({"ok": 0.0, "code": 18, "errmsg": "Could not find user"}, False),
        ({"errmsg": 1}, False),
    ],
)
async def test_what_the_server_says_to_a_certificate(cluster: Cluster, authenticate: Document, lets_in: bool) -> None:
    async with Server.with_files(*cluster.database_server("localhost")) as server:
        server.authenticate = authenticate
        async with world(cluster, _orders(server.port)) as made, asyncio.TaskGroup() as group:
            near, far = pair()
            certificate = cluster.user().certificate
            preface = Preface("c-1", Kind.DATABASE, "orders", certificate, "192.0.2.1:1", user="alice")
            serving = group.create_task(_serve(made, preface, far))
            await near.read_exactly(int.from_bytes(await near.read_exactly(4), "big"))
            await near.write(opening("alice", "app"))
            client = Client(near, made, server, serving)
            assert (await client.answer(1))["ok"] == 1.0
            said = await client.ask({"find": "c"})
            near.abort()
        assert (said.get("ran") == "find") is lets_in
        assert lets_in or said["codeName"] == "OperationFailed"


@pytest.mark.parametrize("hello", [b"", b"\0\0\0\0", op_msg({"ping": 1, "$db": "x"}), opening("a", "b") + b"x"])
async def test_a_stream_that_begins_with_anything_else_is_reset(cluster: Cluster, hello: bytes) -> None:
    """A proxy that passes on what no front of ours would."""
    async with session(cluster, first=hello) as client:
        if not hello:
            client.stream.send_eof()
        assert await client.rest() == b""
        assert client.server.users == []
