"""The database handler over memory streams: what it lets through, what it says, and what it never passes on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from monoport import protocols
from monoport.access.claims import Destination
from monoport.access.resources import Database, DatabaseSpec, Metadata
from monoport.audit.outage import NotRecorded
from monoport.auth.keys import load_chain
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.net.tls import HandshakeError, connect_tls
from monoport.proxy.connection import Connection, FrontDoor
from monoport.proxy.database import Databases
from monoport.proxy.registry import Connections
from monoport.routing.outcome import Ask, Kind, Route, Show, Tls, Trust
from monoport.routing.table import build
from monoport.tunnel import preface
from monoport.wire.front import NOTHING_KNOWN, Cancel, Known, Login, Secured, Send, Step, Why
from monoport.wire.postgres.messages import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    CancelRequest,
    StartupMessage,
    message,
    parse_error,
)

# ruff: noqa: TID252 # tests are no package
from ..agents.database.scripted import KEY, OK, READY, Script, read_message, read_packet
from ..agents.database.world import HOST_ID, PUBLIC, Cluster, User, World, configured, world

STARTUP = StartupMessage(0, {"user": "alice", "database": "app"}).encode()
OUTER = Tls(Show.CLUSTER, Ask.OPTIONAL, Trust.USER, "teleport-postgres", tls12=True)
ROUTE = Route(Kind.DATABASE, "postgres", OUTER, protocol="postgres", target="orders")
CANCEL = Route(Kind.DATABASE, "postgres-cancel", None, protocol="postgres")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster()


class Front:
    """A proxy's front door with one database behind it."""

    def __init__(self, made: World, server: Script) -> None:
        self.world = made
        self.server = server
        rules = [one.routing for one in protocols.TABLE.values()]
        self.connections = Connections()
        self.door = FrontDoor(
            build([PUBLIC], "example.com", frozenset({Kind.DATABASE}), rules),
            made.contexts,
            self.connections,
            {},
            lambda: made.cluster.trusted,
        )
        self.number = 0

    @asynccontextmanager
    async def client(self, user: User | None, route: Route = ROUTE, handler: Any = None) -> AsyncIterator[Stream]:
        """A client whose connection the handler serves; `user`: whom its outer TLS has proven."""
        near, far = pair()
        self.number += 1
        connection = Connection(f"c{self.number}", ("10.0.0.1", 5000), far, self.door, route=route)
        self.connections.opened(connection)
        if user is not None:
            connection.identify(user.der)

        async def serve() -> None:
            try:
                await (handler or self.world.proxy).serve(connection)
            except ConnectionError:
                connection.stream.abort()
            finally:
                connection.release()
                if not connection.stream.lost:
                    connection.stream.close()
                self.connections.closed(connection)

        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            yield near
            near.close()


async def plays(stream: Stream) -> None:
    """A server that answers every message."""
    packet = await read_packet(stream)
    if packet[4:8] == CancelRequest(0, b"").encode()[4:8]:
        return
    await stream.write(OK + KEY + READY)
    while (await read_message(stream))[0] != b"X":
        await stream.write(message(b"C", b"DONE\0") + READY)


@pytest.fixture
async def front(cluster: Cluster) -> AsyncIterator[Front]:
    script = Script(cluster, plays)
    async with script.running(), world(cluster, configured(port=script.port)) as made:
        yield Front(made, script)


async def error(stream: Stream) -> dict[str, str]:
    kind, body = await read_message(stream)
    assert kind == b"E"
    assert await stream.read() == b""
    return parse_error(body)


async def logged_in(stream: Stream, startup: bytes = STARTUP) -> tuple[int, bytes]:
    """Log in and return the cancel key that the client got."""
    await stream.write(startup)
    found = (0, b"")
    while True:
        kind, body = await read_message(stream)
        assert kind != b"E", body
        if kind == b"K":
            found = int.from_bytes(body[:4], "big"), body[4:]
        if kind == b"Z":
            return found


async def test_what_the_client_sets_at_startup_is_recorded_by_proxy_and_agent(front: Front, cluster: Cluster) -> None:
    sent = {"user": "alice", "database": "app", "application_name": "ps\x1bql", "options": "-c role=admin"}
    async with front.client(cluster.user()) as client:
        await logged_in(client, StartupMessage(0, sent).encode())
        await client.write(message(b"X"))
    expected = r'options="-c role=admin" application_name="ps\u001bql"'
    (start,) = front.world.events("db.session.start")
    (settings,) = front.world.events("db.session.settings")
    assert (start["startup"], settings["startup"]) == (expected, expected)
    assert start["connection"] == settings["connection"]


async def test_a_session_with_the_outer_certificate(front: Front, cluster: Cluster) -> None:
    async with front.client(cluster.user()) as client:
        await client.write(SSL_REQUEST)
        assert await client.read() == b"N"
        process_id, secret = await logged_in(client)
        await client.write(message(b"Q", b"SELECT 1\0"))
        assert (await read_message(client))[0] == b"C"
        (sent,) = front.world.tunnels.prefaces
        assert (sent.process_id, sent.secret) == (process_id, secret)
        assert (sent.kind, sent.target, sent.user, sent.database) == (preface.Kind.DATABASE, "orders", "alice", "app")
        assert (sent.connection, sent.source) == ("c1", "10.0.0.1:5000")
        await client.write(message(b"X"))
    kinds = [event.type for event in front.world.audit.events]
    assert kinds == ["db.session.start", "db.session.end"]
    assert front.world.audit.events[0].fields["startup"] == ""
    for event in front.world.audit.events:
        assert event.fields["user"] == "alice@example.com"
        assert event.fields["rule"]
    assert front.world.audit.events[1].fields["bytes_in"] > 0


@pytest.mark.parametrize("split", [False, True])
async def test_tls_in_tls_brings_the_certificate(front: Front, cluster: Cluster, split: bool) -> None:
    context = ssl.create_default_context(cadata=cluster.trusted.host[0])
    user = cluster.user()
    load_chain(context, user.certificate, user.key)
    async with front.client(None) as client:
        for piece in [bytes([byte]) for byte in GSSENC_REQUEST] if split else [GSSENC_REQUEST]:
            await client.write(piece)
        assert await client.read() == b"N"
        for piece in [bytes([byte]) for byte in SSL_REQUEST] if split else [SSL_REQUEST]:
            await client.write(piece)
        assert await client.read_exactly(1) == b"S"
        inner = await connect_tls(client, context, server_hostname="localhost")
        await logged_in(inner)
        await inner.write(message(b"X"))
    assert front.world.audit.events[0].fields["user"] == "alice@example.com"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"orders.db.{PUBLIC}", ""),
        (f"other.db.{PUBLIC}", 'database "other" is not known here'),
    ],
)
async def test_sni_of_inner_tls_names_the_database(front: Front, cluster: Cluster, name: str, says: str) -> None:
    context = ssl.create_default_context(cadata=cluster.trusted.host[0])
    user = cluster.user()
    load_chain(context, user.certificate, user.key)
    async with front.client(None, replace(ROUTE, target=None)) as client:
        await client.write(SSL_REQUEST)
        assert await client.read_exactly(1) == b"S"
        inner = await connect_tls(client, context, server_hostname=name)
        if says:
            await inner.write(STARTUP)
            assert says in (await error(inner))["M"]
        else:
            await logged_in(inner)
            await inner.write(message(b"X"))


async def test_sni_of_inner_tls_that_is_reserved_for_others(front: Front) -> None:
    async with front.client(None) as client:
        await client.write(SSL_REQUEST)
        assert await client.read_exactly(1) == b"S"
        with pytest.raises(ConnectionError):
            await connect_tls(client, ssl.create_default_context(), server_hostname=f"kube.{PUBLIC}")
    (turned,) = front.connections.refusals
    assert "reserved" in turned.refusal.reason


async def test_what_is_no_hello_is_not_left_to_tls(front: Front) -> None:
    for hello in (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n"):
        async with front.client(None) as client:
            await client.write(SSL_REQUEST)
            assert await client.read_exactly(1) == b"S"
            await client.write(hello)
            await drained(client)
    async with front.client(None) as client:
        await client.write(SSL_REQUEST)
        assert await client.read_exactly(1) == b"S"
        client.send_eof()
        await drained(client)
    assert len(front.connections.refusals) == 3


async def drained(stream: Stream) -> None:
    try:
        while await stream.read():
            pass
    except ConnectionError:
        pass


async def test_inner_tls_without_certificate(front: Front, cluster: Cluster) -> None:
    context = ssl.create_default_context(cadata=cluster.trusted.host[0])
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the refusal is part of the handshake
    async with front.client(None) as client:
        await client.write(SSL_REQUEST)
        assert await client.read_exactly(1) == b"S"
        with pytest.raises(HandshakeError):
            await connect_tls(client, context, server_hostname="localhost")
    assert front.world.tunnels.prefaces == []


async def test_inner_tls_with_a_hosts_certificate(front: Front, cluster: Cluster) -> None:
    context = ssl.create_default_context(cadata=cluster.trusted.host[0])
    pair_ = cluster.proxy()
    load_chain(context, pair_.certificate.decode(), pair_.key.decode())
    async with front.client(None) as client:
        await client.write(SSL_REQUEST)
        assert await client.read_exactly(1) == b"S"
        inner = await connect_tls(client, context, server_hostname="localhost")
        with pytest.raises(ConnectionError):  # TLS 1.3 says so after the client's own part is done
            await inner.read()
    assert front.world.tunnels.prefaces == []
    assert [turned.refusal.code for turned in front.connections.refusals] == ["handshake_failed"]


async def test_a_certificate_that_tls_accepts_and_access_does_not(front: Front, cluster: Cluster) -> None:
    context = ssl.create_default_context(cadata=cluster.trusted.host[0])
    user = cluster.user()
    load_chain(context, user.certificate, user.key)
    front.door.cas = lambda: Cluster().trusted  # the CA was rotated away a moment ago
    async with front.client(None) as client:
        await client.write(SSL_REQUEST)
        assert await client.read_exactly(1) == b"S"
        inner = await connect_tls(client, context, server_hostname="localhost")
        assert "certificate not accepted" in (await error(inner))["M"]
    assert [turned.refusal.code for turned in front.connections.refusals] == ["identity_refused"]


async def test_bytes_ahead_of_tls_are_never_read_as_if_inside(front: Front) -> None:
    async with front.client(None) as client:
        await client.write(SSL_REQUEST + STARTUP)
        assert "bytes behind SSLRequest" in (await error(client))["M"]
    assert front.world.tunnels.prefaces == []


async def test_no_certificate_no_session(front: Front) -> None:
    async with front.client(None) as client:
        await client.write(STARTUP)
        assert (await error(client))["C"] == "28000"
    assert front.world.tunnels.prefaces == []


@pytest.mark.parametrize(
    ("destination", "target", "says", "state"),
    [
        (None, "orders", None, ""),
        (Destination("db", "orders"), None, None, ""),
        (Destination("db", "orders", "postgres", "alice", "app"), "orders", None, ""),
        (None, None, "names no database", "3D000"),
        (None, "nosuch", 'database "nosuch" is not known', "3D000"),
        (Destination("db", "nosuch"), None, 'database "nosuch" is not known', "3D000"),
        (Destination("db", "other"), "orders", 'for database "other", not for "orders"', "28000"),
        (Destination("db", "orders", "mysql"), None, "does not speak PostgreSQL", "28000"),
        (Destination("db", "orders", user="bob"), None, 'for user "bob"', "28000"),
        (Destination("db", "orders", database="x"), None, 'for database "x"', "28000"),
        (Destination("app", "orders"), "orders", "not for databases", "28000"),
        (Destination("db", "mine"), None, "does not speak PostgreSQL", "3D000"),
    ],
)
async def test_which_database(
    front: Front,
    cluster: Cluster,
    destination: Destination | None,
    target: str | None,
    says: str | None,
    state: str,
) -> None:
    front.world.directory.known.append(
        Database(metadata=Metadata(name="mine"), spec=DatabaseSpec(protocol="mysql", host_id=HOST_ID))
    )
    async with front.client(cluster.user(destination=destination), replace(ROUTE, target=target)) as client:
        if says is None:
            await logged_in(client)
            await client.write(message(b"X"))
            return
        await client.write(STARTUP)
        told = await error(client)
        assert says in told["M"]
        assert told["C"] == state
    (denied,) = front.world.audit.events
    assert denied.type == "db.session.deny"
    assert denied.fields["rule"]
    named = destination.name if destination is not None and destination.kind == "db" else ""
    assert denied.fields["database"] == (target or named)
    assert (denied.fields["db_user"], denied.fields["db_name"]) == ("alice", "app"), "what was asked for"
    assert front.world.tunnels.prefaces == []


async def test_protocol_from_certificate_or_directory(front: Front, cluster: Cluster) -> None:
    by_name = replace(ROUTE, protocol=None)
    async with front.client(cluster.user(), by_name) as client:
        await logged_in(client)
        await client.write(message(b"X"))
    destination = Destination("db", "orders", "postgres")
    async with front.client(cluster.user(destination=destination), replace(by_name, target=None)) as client:
        await logged_in(client)
        await client.write(message(b"X"))
    async with front.client(cluster.user(), replace(by_name, target=None)) as client:
        assert await client.read() == b""


async def test_a_certificate_for_another_protocols_database_is_refused_in_the_words_of_the_name(
    front: Front, cluster: Cluster
) -> None:
    destination = Destination("db", "mine", "mysql", "alice")
    async with front.client(cluster.user(destination=destination), replace(ROUTE, protocol=None)) as client:
        await client.write(STARTUP)
        assert (await error(client))["M"].startswith('this certificate is for database "mine", not for "orders"')
    assert front.world.tunnels.prefaces == []


async def test_a_role_that_does_not_allow(front: Front, cluster: Cluster) -> None:
    async with front.client(cluster.user(users=["bob"])) as client:
        await client.write(STARTUP)
        told = await error(client)
        assert '"alice"' in told["M"]
        assert "role" not in told["M"], "which rule decided is for the log"
    (turned,) = front.connections.refusals
    assert turned.refusal.code == "database_denied"
    (denied,) = front.world.audit.events
    assert "role" in str(denied.fields["rule"])


async def test_offline_agents_and_the_next_one(front: Front, cluster: Cluster) -> None:
    known = front.world.directory.known
    known.insert(0, known[0].model_copy(update={"spec": DatabaseSpec(protocol="postgres", host_id="gone")}))
    async with front.client(cluster.user()) as client:
        await logged_in(client)
        await client.write(message(b"X"))
    del known[1]
    async with front.client(cluster.user()) as client:
        await client.write(STARTUP)
        told = await error(client)
        assert told["C"] == "57P03"
        assert 'database "orders" is offline' in told["M"]


async def test_the_agents_own_refusal_is_final(front: Front, cluster: Cluster) -> None:
    agent = front.world.tunnels.agents[HOST_ID]
    agent._directory = replace(front.world.directory, roles={})
    async with front.client(cluster.user()) as client:
        await client.write(STARTUP)
        assert (await error(client))["C"] == "28000"
    assert [event.type for event in front.world.audit.events] == ["db.session.deny"]


async def test_a_session_that_cannot_be_recorded_does_not_take_place(front: Front, cluster: Cluster) -> None:
    async def full(kind: str, /, **fields: object) -> None:
        raise NotRecorded

    front.world.audit.emit = full  # type: ignore[method-assign]
    async with front.client(cluster.user()) as client:
        await client.write(STARTUP)
        told = await error(client)
        assert (told["C"], told["M"]) == (
            "XX000",
            f"the session could not be recorded: {NotRecorded()} [connection c1]",
        )
    assert front.server.openings == []


@pytest.mark.parametrize("route", [CANCEL, ROUTE])
@pytest.mark.parametrize("minor", [0, 2])
async def test_cancel_finds_its_session(front: Front, cluster: Cluster, route: Route, minor: int) -> None:
    startup = StartupMessage(minor, {"user": "alice", "database": "app"}).encode()
    async with front.client(cluster.user()) as client:
        key = await logged_in(client, startup)
        assert len(key[1]) == (32 if minor else 4)
        for wrong in (CancelRequest(key[0] + 1, key[1]), CancelRequest(key[0], b"x" * len(key[1]))):
            async with front.client(None, route) as other:
                await other.write(wrong.encode())
                assert await other.read() == b""
        assert len(front.world.tunnels.prefaces) == 1
        assert [one["guesses"] for one in front.world.events("db.cancel.deny")] == [1, 1]
        assert front.world.events("db.cancel") == []
        async with front.client(None, route) as other:
            await other.write(CancelRequest(*key).encode())
            assert await other.read() == b""
        assert front.world.tunnels.prefaces[1].kind is preface.Kind.CANCEL
        assert front.world.tunnels.prefaces[1].connection == "c1"
        assert CancelRequest(4711, b"real").encode() in front.server.openings
        (cancel,) = front.world.events("db.cancel")
        assert (cancel["user"], cancel["database"], cancel["session"]) == ("alice@example.com", "orders", "c1")
        await client.write(message(b"X"))
    async with front.client(None, route) as other:
        await other.write(CancelRequest(*key).encode())
        assert await other.read() == b""
    assert len(front.world.tunnels.prefaces) == 2, "the key is gone with its session"


async def test_cancel_with_the_agent_gone(front: Front, cluster: Cluster) -> None:
    async with front.client(cluster.user()) as client:
        key = await logged_in(client)
        front.world.tunnels.agents.clear()
        async with front.client(None, CANCEL) as other:
            await other.write(CancelRequest(*key).encode())
            assert await other.read() == b""
        await client.write(message(b"X"))


async def test_a_client_that_says_nothing(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoport.proxy.database.OPENING", 0.05)
    async with front.client(None) as client:
        await client.write(SSL_REQUEST[:5])
        assert await client.read() == b""


async def test_a_client_that_leaves(front: Front) -> None:
    async with front.client(None) as client:
        await client.write(SSL_REQUEST[:5])
        client.send_eof()
        assert await client.read() == b""
    async with front.client(None) as client:
        client.abort()
    assert front.world.tunnels.prefaces == []


class Greeting:
    """The front of a protocol whose server speaks first and whose login names nobody."""

    def begin(self, secured: Secured, known: Known = NOTHING_KNOWN) -> Step | None:
        return Send(b"hello")

    def receive(self, data: bytes) -> Step | None:
        return Login("", "", data) if data else None

    def refuse(self, why: Why, reason: str) -> bytes:
        return f"{why} {reason}".encode()


@pytest.mark.parametrize(
    ("destination", "says"),
    [
        (Destination("db", "orders", "postgres"), b"names a database user"),
        (Destination("db", "orders", "postgres", "alice"), b"names a database"),
        (Destination("db", "nosuch", "postgres", "alice", "app"), b'"nosuch" is not known'),
    ],
)
async def test_protocols_whose_server_speaks_first(
    front: Front, cluster: Cluster, destination: Destination, says: bytes
) -> None:
    table = {"postgres": replace(protocols.TABLE["postgres"], front=Greeting)}
    handler = Databases(
        front.world.contexts, front.world.tunnels, front.world.directory, front.world.audit, table=table
    )
    async with front.client(cluster.user(destination=destination), replace(ROUTE, target=None), handler) as client:
        assert await client.read() == b"hello"
        await client.write(b"login")
        assert says in await client.read()


def test_outcomes_do_not_show_secrets() -> None:
    assert "hunter" not in repr(Cancel(1, b"hunter"))
