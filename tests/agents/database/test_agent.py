"""The agent decides by itself, and speaks for itself where the real server is odd, slow, down or hostile."""

# ruff: noqa: SIM117 # a server, a world and a stream read better one inside the other

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from monoport import protocols
from monoport.access.claims import Destination
from monoport.access.lease import Leases
from monoport.access.resources import Lock
from monoport.agents.database import agent as agents
from monoport.audit.outage import NotRecorded
from monoport.audit.spool import SpoolError
from monoport.auth.client import AuthError
from monoport.errors import Failure
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.tunnel import dial
from monoport.tunnel.preface import Kind, Preface
from monoport.wire.postgres.messages import (
    CancelRequest,
    StartupMessage,
    message,
    negotiate_version,
    parse_error,
    parse_opening,
)

from .scripted import KEY, OK, READY, Play, Script, read_message, read_packet
from .world import HOST_ID, Auth, Cluster, Directory, MemoryLog, User, World, configured, world

STARTUP = StartupMessage(0, {"user": "alice", "database": "app"})
QUERY = message(b"Q", b"SELECT 1\0")


def preface(caller: User, **changes: Any) -> Preface:
    made = Preface(
        connection="c1",
        kind=Kind.DATABASE,
        target="orders",
        certificate=caller.certificate,
        source="10.0.0.1:5000",
        host_id=HOST_ID,
        user="alice",
        database="app",
        process_id=77,
        secret=bytes(range(32)),
    )
    return replace(made, **changes)


class Served:
    """A stream that the agent serves; `outcome` is what serving it came to."""

    def __init__(self, client: Stream, task: asyncio.Task[None]) -> None:
        self.client = client
        self.task = task

    async def accepted(self) -> None:
        await self.client.read_exactly(4 + len(b'{"ok":true}'))

    async def error(self) -> dict[str, str]:
        kind, body = await read_message(self.client)
        assert kind == b"E"
        return parse_error(body)


@asynccontextmanager
async def serving(made: World, asked: Preface) -> AsyncIterator[Served]:
    near, far = pair()

    async def serve() -> None:
        await made.agent.serve(asked, far)
        far.close()

    async with asyncio.TaskGroup() as group:
        served = Served(near, group.create_task(serve()))
        yield served
        near.close()


async def refused(made: World, asked: Preface) -> dial.DialRefused:
    _, far = pair()
    with pytest.raises(dial.DialRefused) as caught:
        await made.agent.serve(asked, far)
    return caught.value


async def admit(stream: Stream) -> StartupMessage:
    """The part of a well-behaved server."""
    startup, _ = parse_opening(await read_packet(stream)) or (None, 0)
    assert isinstance(startup, StartupMessage)
    await stream.write(OK + KEY + READY)
    return startup


async def echo(stream: Stream) -> None:
    await admit(stream)
    while data := await stream.read():
        if data == message(b"X"):
            return
        await stream.write(message(b"C", b"DONE\0") + READY)


async def test_a_session(cluster: Cluster) -> None:
    startups: list[StartupMessage] = []

    async def play(stream: Stream) -> None:
        startups.append(await admit(stream))
        assert await stream.read() == QUERY
        await stream.write(message(b"C", b"SELECT 1\0") + READY)
        assert await stream.read() == message(b"X")

    async with Script(cluster, play).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            startup = StartupMessage(
                2,
                {
                    "user": "alice",
                    "database": "app",
                    "TimeZone": "UTC",
                    "replication": "off",
                    "_pq_.future": "1",
                },
            )
            await served.client.write(startup.encode())
            opening = negotiate_version(2, ["_pq_.future"]) + OK + message(b"K", bytes([0, 0, 0, 77, *range(32)]))
            assert await served.client.read_exactly(len(opening + READY)) == opening + READY
            await served.client.write(QUERY)
            await served.client.read_exactly(len(message(b"C", b"SELECT 1\0") + READY))
            await served.client.write(message(b"X"))
            assert await served.client.read() == b""
        settings, event = made.agent_audit.events
        assert settings.type == "db.session.settings"
        assert settings.fields["startup"] == 'TimeZone="UTC" replication="off" _pq_.future="1"'
        assert event.type == "db.query"
        assert event.fields == {
            "connection": "c1",
            "source": "10.0.0.1:5000",
            "user": "alice@example.com",
            "database": "orders",
            "protocol": "postgres",
            "db_user": "alice",
            "db_name": "app",
            "statement": "SELECT 1",
        }
        assert len(made.leases) == 0
    assert startups == [StartupMessage(2, {"user": "alice", "database": "app", "TimeZone": "UTC"})]


async def test_what_the_agent_refuses_by_itself(cluster: Cluster) -> None:
    user = cluster.user()
    async with world(cluster, configured(port=1)) as made:
        for changes, code, says in (
            ({"target": "other"}, dial.NOT_SERVED, "not registered here"),
            ({"kind": Kind.SSH}, dial.NOT_SERVED, "databases only"),
            ({"user": "bob"}, dial.DENIED, '"bob"'),
            ({"database": "postgres"}, dial.DENIED, '"postgres"'),
            ({"certificate": ""}, dial.DENIED, "certificate not accepted"),
            ({"certificate": Cluster().user().certificate}, dial.DENIED, "certificate not accepted"),
            ({"certificate": cluster.proxy().certificate.decode()}, dial.DENIED, "certificate not accepted"),
            ({"kind": Kind.CANCEL}, dial.NOT_SERVED, "no such session"),
        ):
            error = await refused(made, preface(user, **changes))
            assert error.code == code
            assert says in str(error)
        for destination in (
            Destination("db", "other"),
            Destination("db", "orders", user="bob"),
            Destination("app", "x"),
        ):
            assert (await refused(made, preface(cluster.user(destination=destination)))).code == dial.DENIED
        made.directory.locks = [
            Lock.model_validate({"kind": "lock", "metadata": {"name": "l"}, "spec": {"target": {"user": "alice"}}})
        ]
        assert (await refused(made, preface(user))).code == dial.DENIED
        made.directory.locks = []
        made.directory.roles = {}
        assert (await refused(made, preface(user))).code == dial.DENIED
        events = made.events("db.session.deny")
        assert len(events) == 10
        assert [one["rule"] for one in events[2:5]] == ["certificate: not accepted"] * 3
        assert all(one["rule"] for one in events), "every denial says what decided"
        assert made.auth.asked == []


async def test_expired_certificates(cluster: Cluster) -> None:
    user = cluster.user(ttl=timedelta(seconds=5))
    async with world(cluster, configured(port=1)) as made:
        made.agent._now = lambda: datetime.now(UTC) + timedelta(minutes=10)
        error = await refused(made, preface(user))
        assert error.code == dial.DENIED
        assert "expired" in str(error)


async def test_one_session_per_connection(cluster: Cluster) -> None:
    async with Script(cluster, echo).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            error = await refused(made, preface(cluster.user()))
            assert "has a session already" in str(error)


@pytest.mark.parametrize(
    ("startup", "state", "says"),
    [
        (StartupMessage(0, {"user": "bob", "database": "app"}), "08P01", "another user or database"),
        (StartupMessage(0, {"user": "alice", "database": "other"}), "08P01", "another user or database"),
        (StartupMessage(0, {"user": "alice", "database": "app", "role": "x"}), "08P01", '"role" cannot be set'),
        (CancelRequest(1, b"abcd"), "08P01", "does not begin with a start-up message"),
    ],
)
async def test_openings_that_never_reach_the_server(
    cluster: Cluster, startup: StartupMessage | CancelRequest, state: str, says: str
) -> None:
    async with Script(cluster, silent).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(startup.encode())
            error = await served.error()
            assert error["C"] == state
            assert says in error["M"]
        assert server.openings == []


async def test_a_client_that_leaves_before_its_startup(cluster: Cluster) -> None:
    async with Script(cluster, silent).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            served.client.send_eof()
            assert "ended before its start-up" in (await served.error())["M"]
        assert server.openings == []


async def test_a_server_that_is_down_is_said_before_the_dial_is_accepted(cluster: Cluster) -> None:
    """The proxy can ask another agent of the same database, and no session has begun."""
    async with world(cluster, configured(port=1)) as made:
        error = await refused(made, preface(cluster.user()))
        assert (error.code, str(error)) == (
            dial.UNAVAILABLE,
            'database "orders" cannot be reached from its agent',
        )
        assert made.agent.open == {}


async def test_a_server_that_answers_nothing_is_given_up_before_the_proxy_gives_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agents.REACH < dial.PREFACE_SECONDS
    monkeypatch.setattr(agents, "REACH", 0.05)
    with socket.socket() as listening:  # its queue is full: who connects waits
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        with socket.create_connection(listening.getsockname()):
            async with world(cluster, configured(host="127.0.0.1", port=listening.getsockname()[1])) as made:
                error = await refused(made, preface(cluster.user()))
                assert error.code == dial.UNAVAILABLE
                assert "within 0.05 s" in str(error)


async def silent(stream: Stream) -> None:
    await read_packet(stream)
    await stream.read()


async def leaves(stream: Stream) -> None:
    await read_packet(stream)


async def demands(stream: Stream) -> None:
    await read_packet(stream)
    await stream.write(message(b"R", b"\0\0\0\5salt"))
    await stream.read()


async def babbles(stream: Stream) -> None:
    await read_packet(stream)
    await stream.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await stream.read()


@pytest.mark.parametrize(
    ("play", "answer", "host", "says"),
    [
        (silent, b"N", "localhost", "does not offer TLS"),
        (silent, b"E", "localhost", "does not offer TLS"),
        # What is put behind the answer in plaintext must not be read as if it came through TLS (CVE-2021-23222).
        (silent, b"S" + OK + KEY + READY, "localhost", "cannot be reached over TLS"),
        (silent, b"S" + message(b"E", b"SFATAL\0C28000\0Minjected\0\0"), "localhost", "cannot be reached over TLS"),
        (silent, b"S", "elsewhere", "cannot be reached over TLS"),
        (demands, b"S", "localhost", "asks for md5 authentication"),
        (babbles, b"S", "localhost", "server message of"),
        (silent, b"S", "localhost", "did not answer in time"),
    ],
)
async def test_servers_that_cannot_be_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, play: Play, answer: bytes, host: str, says: str
) -> None:
    if "in time" in says:
        monkeypatch.setattr("monoport.agents.database.postgres.OPENING", 0.05)
    async with (
        Script(cluster, play, answer, host).running() as server,
        world(cluster, configured(port=server.port)) as made,
    ):
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(STARTUP.encode())
            assert says in (await served.error())["M"]
            assert await served.client.read() == b""


async def test_a_server_that_leaves_in_the_opening(cluster: Cluster) -> None:
    async with Script(cluster, leaves).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(STARTUP.encode())
            assert await served.client.read() == b""


@pytest.mark.parametrize(
    ("tls", "host", "works"),
    [
        ({"server_name": "elsewhere"}, "elsewhere", True),
        ({"mode": "verify-ca"}, "elsewhere", True),
        ({"mode": "insecure"}, "elsewhere", True),
        ({}, "elsewhere", False),
    ],
)
async def test_how_the_servers_name_is_verified(cluster: Cluster, tls: dict[str, str], host: str, works: bool) -> None:
    async with Script(cluster, echo, host=host).running() as server:
        async with world(cluster, configured(port=server.port, **tls)) as made:
            async with serving(made, preface(cluster.user())) as served:
                await served.accepted()
                await served.client.write(STARTUP.encode())
                kind, _ = await read_message(served.client)
                assert (kind == b"R") is works


async def test_another_ca_by_file(cluster: Cluster, tmp_path: Any) -> None:
    other = Cluster()
    file = tmp_path / "ca.pem"
    file.write_text(other.trusted.db[0])
    async with Script(other, echo).running() as server:
        async with world(cluster, configured(port=server.port, ca_cert_file=str(file))) as made:
            engine = made.agent._engines["orders"]
            await engine.probe()
            file.write_text(cluster.trusted.db[0])
            with pytest.raises(Exception, match="cannot be reached over TLS"):
                await engine.probe()
            file.unlink()
            with pytest.raises(Exception, match="CA file cannot be read"):
                await engine.probe()


async def test_the_auth_service_is_away(cluster: Cluster) -> None:
    async with Script(cluster, silent).running() as server, world(cluster, configured(port=server.port)) as made:
        made.auth.error = AuthError("unavailable", "the auth service does not answer")
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(STARTUP.encode())
            error = await served.error()
            assert error["C"] == "28000"
            assert "the auth service does not answer" in error["M"]


async def test_certificates_are_renewed_near_their_end(cluster: Cluster) -> None:
    async with Script(cluster, echo).running() as server, world(cluster, configured(port=server.port)) as made:
        made.auth.ttl = timedelta(minutes=4)
        for connection in ("c1", "c2"):
            async with serving(made, preface(cluster.user(), connection=connection)) as served:
                await served.accepted()
                await served.client.write(STARTUP.encode())
                assert (await read_message(served.client))[0] == b"R"
        assert made.auth.asked == ["alice", "alice"]


async def test_broken_messages_never_reach_the_server(cluster: Cluster) -> None:
    got: list[bytes] = []

    async def play(stream: Stream) -> None:
        await admit(stream)
        while data := await stream.read():
            got.append(data)

    async with Script(cluster, play).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(STARTUP.encode())
            await served.client.read_exactly(len(OK + KEY + READY))
            await served.client.write(STARTUP.encode())  # a second start-up message
            error = await served.error()
            assert error["C"] == "08P01"
            assert "unknown type" in error["M"]
    assert got == []


PATH = "cannot write to the spool /s: No space left on device"


async def test_a_statement_that_cannot_be_recorded_does_not_run(cluster: Cluster) -> None:
    got: list[bytes] = []

    async def play(stream: Stream) -> None:
        await admit(stream)
        while data := await stream.read():
            got.append(data)

    async with Script(cluster, play).running() as server, world(cluster, configured(port=server.port)) as made:

        async def full(_entries: object) -> None:
            raise SpoolError(PATH)  # no log of ours does: that no path reaches a client hangs on nothing else

        made.agent_audit.emit_all = full  # type: ignore[method-assign]
        with capture_logs() as logged:
            async with serving(made, preface(cluster.user())) as served:
                await served.accepted()
                await served.client.write(STARTUP.encode())
                await served.client.read_exactly(len(OK + KEY + READY))
                await served.client.write(QUERY + QUERY)
                said = (await served.error())["M"]
    assert said == f"session ended: the statement could not be recorded: {NotRecorded()} [connection c1]"
    assert [line["reason"] for line in logged if line["event"] == "session ended: audit log"] == [PATH]
    assert got == []


async def test_settings_that_cannot_be_recorded_open_no_session(cluster: Cluster) -> None:
    async with Script(cluster, echo).running() as server, world(cluster, configured(port=server.port)) as made:

        async def full(_entries: object) -> None:
            raise NotRecorded

        made.agent_audit.emit_all = full  # type: ignore[method-assign]
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            wanted = {"user": "alice", "database": "app", "options": "-c role=admin"}
            await served.client.write(StartupMessage(0, wanted).encode())
            error = await served.error()
    assert error["M"] == f"the session could not be recorded: {NotRecorded()} [connection c1]"
    assert server.openings == []


async def test_a_server_that_resets_in_the_middle_of_a_row(cluster: Cluster) -> None:
    async def play(stream: Stream) -> None:
        await admit(stream)
        await stream.read()
        await stream.write(b"D\0\0\1\0half")
        stream.abort()
        raise ConnectionError

    async with Script(cluster, play).running() as server, world(cluster, configured(port=server.port)) as made:
        near, far = pair()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_outcome(made, preface(cluster.user()), far))
            served = Served(near, task)  # type: ignore[arg-type]
            await served.accepted()
            await near.write(STARTUP.encode() + b"")
            await near.read_exactly(len(OK + KEY + READY))
            await near.write(QUERY)
        assert isinstance(task.result(), ConnectionError)
        assert len(made.leases) == 0


async def _outcome(made: World, asked: Preface, stream: Stream) -> Exception | None:
    try:
        await made.agent.serve(asked, stream)
    except ConnectionError as error:
        return error
    return None


async def test_cancel_reaches_the_real_server(cluster: Cluster) -> None:
    cancelled: list[bytes] = []
    busy = asyncio.Event()

    async def play(stream: Stream) -> None:
        packet = await read_packet(stream)
        if packet[4:8] == CancelRequest(0, b"").encode()[4:8]:
            cancelled.append(packet)
            busy.set()
            return
        await stream.write(OK + KEY + READY)
        assert await stream.read() == QUERY
        await busy.wait()
        await stream.write(message(b"E", b"SERROR\0C57014\0Mcanceling statement\0\0") + READY)
        await stream.read()

    async with Script(cluster, play).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(STARTUP.encode())
            await served.client.read_exactly(len(OK + KEY + READY))
            await served.client.write(QUERY)
            for changes in ({"connection": "c2"}, {"process_id": 78}, {"secret": b"x" * 32}, {"target": "other"}):
                wrong = preface(cluster.user(), **{"kind": Kind.CANCEL, "certificate": "", **changes})
                assert (await refused(made, wrong)).code == dial.NOT_SERVED
            async with serving(made, preface(cluster.user(), kind=Kind.CANCEL, certificate="")) as cancel:
                await cancel.accepted()
                assert await cancel.client.read() == b""
            assert (await served.error())["C"] == "57014"
    assert cancelled == [CancelRequest(4711, b"real").encode()]


async def test_a_session_that_ends_before_its_opening_is_over(cluster: Cluster) -> None:
    release = asyncio.Event()

    async def play(stream: Stream) -> None:
        await read_packet(stream)
        await release.wait()
        await stream.write(OK + KEY + READY)
        await stream.read()

    async with Script(cluster, play).running() as server, world(cluster, configured(port=server.port)) as made:
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()
            await served.client.write(STARTUP.encode())
            assert made.leases.sweep(datetime.now(UTC) + timedelta(hours=3), []) == 1
            release.set()
            await served.client.read_exactly(len(OK + KEY + READY))
            error = await served.error()
            assert (error["S"], error["C"]) == ("FATAL", "57P01")
            assert "certificate expired" in error["M"]


async def test_heartbeats_and_health(cluster: Cluster) -> None:
    pauses: list[float] = []

    class Over(Exception):
        """The test has seen enough."""

    async with Script(cluster, leaves).running() as server:
        async with world(cluster, configured(port=server.port), configured("down", port=1)) as made:

            async def sleep(seconds: float) -> None:
                pauses.append(seconds)
                if len(pauses) == 2:
                    raise Over
                told = {one.name: one.spec for one in made.auth.beats}
                assert (told["orders"].state, told["orders"].problem) == ("up", "")
                assert told["down"].state == "down"
                assert "cannot be reached" in told["down"].problem
                made.auth.error = AuthError("unavailable", "away")

            made.agent._sleep = sleep
            with pytest.raises(Over):
                await made.agent.run()
            assert {one.name for one in made.auth.beats} == {"down", "orders"}
            assert made.agent.health["orders"] == ""
            assert "cannot be reached" in made.agent.health["down"]
    assert all(12 <= pause <= 15 for pause in pauses)


async def test_a_removed_database_is_not_served_until_it_is_allowed_again(cluster: Cluster, capsys) -> None:
    async with Script(cluster, leaves).running() as server, world(cluster, configured(port=server.port)) as made:
        agent = made.agent
        made.auth.error = AuthError("unavailable", "away")
        await agent._tell("orders")
        made.auth.error = None
        for _ in range(2):
            await agent._tell("orders")
        assert made.auth.first == [True, True, False], "the first that is heard says that we have started"
        made.auth.error = AuthError("removed", "removed by an administrator")
        for _ in range(3):
            await agent._tell("orders")
        assert capsys.readouterr().out.count("no longer served") == 1, "said once, not with every heartbeat"
        assert (await refused(made, preface(cluster.user()))).code == dial.NOT_SERVED
        made.auth.error = None
        await agent._tell("orders")
        assert made.auth.first[-1] is False
        async with serving(made, preface(cluster.user())) as served:
            await served.accepted()


def test_an_engine_that_cannot_be_loaded_is_one_line(cluster: Cluster) -> None:
    directory, leases = Directory(cluster.trusted), Leases()
    for engine in ("nothing_of_that_name", "monoport.agents.database.engine"):  # no such module, and none in it
        table = {"postgres": replace(protocols.TABLE["postgres"], engine=engine)}
        with pytest.raises(Failure, match="the engine of protocol postgres cannot be loaded: "):
            agents.Databases(HOST_ID, [configured()], directory, Auth(cluster), MemoryLog(), leases=leases, table=table)
