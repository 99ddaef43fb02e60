"""The MySQL engine against a server that does what a real one never would, and clients that do likewise."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from monoport.agents.database.engine import Unreachable
from monoport.agents.database.mysql import PROBE_USER
from monoport.agents.sealed import Sealer
from monoport.audit.outage import NotRecorded
from monoport.auth.client import AuthError
from monoport.net.memory import pair
from monoport.net.stream import LIMIT, Stream
from monoport.net.tls import TlsStream
from monoport.tunnel import dial
from monoport.tunnel.preface import Accepted, Kind, Preface
from monoport.wire.mysql.compression import deflated
from monoport.wire.mysql.handshake import NATIVE, Answer, ServerRefusal
from monoport.wire.mysql.packets import Capability, packet

from ...scenarios.mysql import BASIC, OK, Mysql, Server, read_packet  # noqa: TID252 # tests are no package
from .world import HOST_ID, Cluster, World, configured, world

Play = Callable[[Stream], Awaitable[None]]


@asynccontextmanager
async def opened(cluster: Cluster, play: Play | None = None) -> AsyncIterator[tuple[World, Server]]:
    """An agent, and a scripted server for what it has registered."""
    async with (
        Server.serving(*cluster.database_server("localhost"), play=play) as server,
        world(cluster, configured(port=server.port, protocol="mysql")) as made,
    ):
        yield made, server


def preface(made: World, database: str = "app", process_id: int = 77) -> Preface:
    alice = made.cluster.user(databases=("app", "other")).certificate
    return Preface(
        f"c-{process_id}", Kind.DATABASE, "orders", alice, "192.0.2.1:1", user="alice", database=database,
        process_id=process_id, host_id=HOST_ID,
    )  # fmt: skip


@asynccontextmanager
async def client(
    made: World, database: str = "app", *, answer: Answer | None = None, number: int = 1, process_id: int = 77
) -> AsyncIterator[Mysql]:
    """A client whose opening the proxy has read; `answer`: what of it the agent is passed."""
    near, far = pair()

    async def serve() -> None:
        try:
            await made.agent.serve(await dial.receive(far), far)
            far.close()
        except ConnectionError:
            far.abort()

    async with asyncio.TaskGroup() as group:
        serving = group.create_task(serve())
        assert isinstance(await dial.ask(near, preface(made, database, process_id)), Accepted)
        said = answer or Answer(BASIC | Capability.CONNECT_WITH_DB, "alice", database, plugin=NATIVE)
        await near.write(packet(number, said.encode()))
        talking = Mysql(near)
        yield talking
        talking.stream.abort()
        await serving


async def ended(stream: Stream) -> bool:
    """Whether nothing more came before the end, a clean one or not."""
    try:
        return await stream.read() == b""
    except ConnectionError:
        return True


async def test_the_servers_ok_and_the_number_that_the_client_expects(cluster: Cluster) -> None:
    async with opened(cluster) as (made, server), client(made, number=3) as one:
        assert await one.read() == (4, OK)
        assert await one.query("select 1") == OK
        assert server.users == ["alice"]
        assert (server.answers[0].database, server.answers[0].proof) == ("app", b"")


async def test_a_reset_in_the_middle_of_a_row_is_passed_on(cluster: Cluster) -> None:
    async def play(stream: Stream) -> None:
        await read_packet(stream)
        await stream.write(packet(1, b"\1") + b"\x40\0\0\2half a row")
        stream.abort()

    async with opened(cluster, play) as (made, _), client(made) as one:
        await one.heard()
        assert await one.query("select 1") == b"\1"
        assert await one.stream.read_exactly(14) == b"\x40\0\0\2half a row"
        assert await ended(one.stream)


async def test_what_ends_a_session_is_said_before_anything_is_closed(cluster: Cluster) -> None:
    """Whoever dialled closes, or lingers: a statement that crosses the end must not become a reset, which loses it."""
    async with opened(cluster) as (made, _):
        near, far = pair()

        async def serve() -> None:
            await made.agent.serve(await dial.receive(far), far)
            assert not far.lost

        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            assert isinstance(await dial.ask(near, preface(made)), Accepted)
            said = Answer(BASIC | Capability.CONNECT_WITH_DB, "alice", "app", plugin=NATIVE)
            await near.write(packet(1, said.encode()))
            talking = Mysql(near)
            assert await talking.heard() == OK
            made.leases.sweep(datetime.now(UTC) + timedelta(days=1), ())
            with pytest.raises(ServerRefusal, match="session ended: certificate expired"):
                await talking.heard()
        near.abort()
        far.abort()


@pytest.mark.parametrize("quits", [True, False])
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_server_ends_without_tls_whoever_has_quit(cluster: Cluster, quits: bool, how: str) -> None:
    """As MariaDB does: no news for whoever has said that this is the end, a connection cut for everybody else."""

    async def play(stream: Stream) -> None:
        assert isinstance(stream, TlsStream)
        await read_packet(stream)
        if how == "reset":
            stream.abort()
        stream.raw.send_eof()

    async with opened(cluster, play) as (made, _), client(made) as one:
        await one.heard()
        await one.stream.write(packet(0, b"\1" if quits else b"\3select 1"))
        if quits:
            assert await one.stream.read() == b""
        else:
            with pytest.raises(ConnectionError):
                await one.stream.read()


async def test_a_client_that_never_reads_holds_little(cluster: Cluster) -> None:
    sent, stuck = 0, asyncio.Event()

    async def play(stream: Stream) -> None:
        nonlocal sent
        await read_packet(stream)
        try:
            while True:
                async with asyncio.timeout(1):  # the network's own buffers are full long before
                    await stream.write(bytes(65_536))
                sent += 65_536
        except TimeoutError:
            stuck.set()

    async with opened(cluster, play) as (made, _), client(made) as one:
        await one.heard()
        await one.stream.write(packet(0, b"\3select 1"))
        await asyncio.wait_for(stuck.wait(), 20)
        kernel = 12 << 20  # what loopback's socket buffers may grow to, both ends together
        assert sent < kernel + 4 * LIMIT


async def test_a_server_that_wants_a_file_gets_none_and_the_client_hears_why(cluster: Cluster) -> None:
    heard: list[bytes] = []

    async def play(stream: Stream) -> None:
        await read_packet(stream)
        await stream.write(packet(1, b"\xfb/home/alice/.ssh/id_ed25519"))
        heard.append(await stream.read())

    async with opened(cluster, play) as (made, server), client(made) as one:
        await one.heard()
        with pytest.raises(ServerRefusal, match="asked for a file of the client's machine"):
            await one.query("select 1")
    assert not server.answers[0].capabilities & Capability.LOCAL_FILES
    assert heard in ([], [b""])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(BASIC, "mallory", "", plugin=NATIVE), "names another user or database"),
        (Answer(BASIC | Capability.CONNECT_WITH_DB, "alice", "other", plugin=NATIVE), "names another user or database"),
        (Answer(Capability.SECURE_CONNECTION, "alice"), r"before 4\.1"),
    ],
)
async def test_no_byte_reaches_the_server_for_an_answer_that_is_not_the_sessions(
    cluster: Cluster, answer: Answer, says: str
) -> None:
    async with opened(cluster) as (made, server), client(made, answer=answer) as one:
        with pytest.raises(ServerRefusal, match=says):
            await one.heard()
        assert server.threads == 100


async def test_a_server_without_tls_is_told_nothing(cluster: Cluster) -> None:
    async with opened(cluster) as (made, server), client(made) as one:
        server.capabilities &= ~Capability.SSL
        with pytest.raises(ServerRefusal, match="does not offer TLS") as raised:
            await one.heard()
        assert raised.value.code == 1429
        assert server.users == []
        (engine,) = made.agent._engines.values()
        with pytest.raises(Unreachable, match="does not offer TLS"):
            await engine.probe()


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_client_that_leaves_after_the_dial_breaks_no_login_off(cluster: Cluster, sealed: bool) -> None:
    """Servers shut out a host, which is the agent, after as many broken logins as max_connect_errors says."""
    async with opened(cluster) as (made, server):
        made.agent._sealer = Sealer(pytest.fail, pytest.fail)  # type: ignore[arg-type] # nobody shakes hands
        near, far = pair()

        async def serve() -> None:
            asked = await dial.receive(far)
            with suppress(ConnectionError):
                await made.agent.serve(asked, far)

        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            assert isinstance(await dial.ask(near, replace(preface(made), sealed=sealed)), Accepted)
            near.abort()
        assert (server.tried, server.users) == ([PROBE_USER], [])
        assert not made.leases


async def test_a_server_that_lacks_what_the_client_was_promised(cluster: Cluster) -> None:
    answer = Answer(BASIC | Capability.DEPRECATE_EOF, "alice", plugin=NATIVE)
    async with opened(cluster) as (made, server), client(made, answer=answer) as one:
        server.capabilities &= ~Capability.DEPRECATE_EOF
        with pytest.raises(ServerRefusal, match="lacks DEPRECATE_EOF"):
            await one.heard()


async def test_a_login_that_the_server_refuses(cluster: Cluster) -> None:
    async with opened(cluster) as (made, server):
        made.auth.ttl = timedelta(hours=1)
        near = made.agent._engines["orders"]
        assert await near.probe() == "10.11.6-MariaDB-scripted"
        await made.agent._beat("orders")
        (resource,) = made.agent.resources
        assert resource.spec.server_version == "10.11.6-MariaDB-scripted"
        assert server.users == []


async def test_what_is_not_recorded_does_not_run(cluster: Cluster) -> None:
    async def refuse(_entries: object) -> None:
        raise NotRecorded

    seen: list[bytes] = []

    async def play(stream: Stream) -> None:
        seen.append(await stream.read())

    async with opened(cluster, play) as (made, _), client(made) as one:
        await one.heard()
        made.agent_audit.emit_all = refuse  # type: ignore[method-assign]
        with pytest.raises(ServerRefusal, match=f"statement could not be recorded: {NotRecorded()}"):
            await one.query("delete from orders")
    assert seen in ([], [b""])


async def test_garbage_behind_the_login_ends_the_session_in_its_own_words(cluster: Cluster) -> None:
    for garbage, says in ((packet(0, b""), "without a code"), (packet(9, b"\3x"), "packet number 9")):
        async with opened(cluster) as (made, _), client(made) as one:
            await one.heard()
            await one.stream.write(garbage)
            with pytest.raises(ServerRefusal, match=says):
                await one.heard()


async def test_compression_towards_the_client_alone(cluster: Cluster) -> None:
    answer = Answer(BASIC | Capability.COMPRESS, "alice", plugin=NATIVE)
    async with opened(cluster) as (made, server), client(made, answer=answer) as one:
        await one.heard()
        assert not server.answers[0].capabilities & Capability.COMPRESS
        await one.stream.write(deflated(packet(0, b"\3select '" + b"x" * 1000 + b"'"), 0))
        head = await one.stream.read_exactly(7)
        assert (head[3], head[4:]) == (1, b"\0\0\0")
        assert await one.stream.read_exactly(int.from_bytes(head[:3], "little")) == packet(1, OK)
        bomb = zlib.compress(bytes(1 << 20))
        await one.stream.write(len(bomb).to_bytes(3, "little") + b"\0" + (100).to_bytes(3, "little") + bomb)
        assert await ended(one.stream)
    assert [event["statement"] for event in made.events("db.query")] == ["select '" + "x" * 1000 + "'"]


async def test_a_session_ends_by_kill_query_on_another_connection(cluster: Cluster) -> None:
    killed, running = asyncio.Event(), asyncio.Event()

    async def play(stream: Stream) -> None:
        _, command = await read_packet(stream)
        if command == b"\3KILL QUERY 101":
            killed.set()
            await stream.write(packet(1, OK))
            return
        running.set()
        await killed.wait()
        await stream.write(packet(1, b"\xff\x25\x05#70100Query execution was interrupted"))
        await stream.read()

    async with opened(cluster, play) as (made, _), client(made) as one:
        await one.heard()
        await one.stream.write(packet(0, b"\3select sleep(60)"))
        await running.wait()
        made.leases.sweep(datetime.now(UTC) + timedelta(days=1), ())
        with pytest.raises(ServerRefusal, match="interrupted"):
            await one.heard()
        with pytest.raises(ServerRefusal, match="session ended: certificate expired") as raised:
            await one.heard()
        assert raised.value.code == 1053


@pytest.mark.parametrize(("code", "told"), [("unavailable", dial.UNAVAILABLE), ("forbidden", dial.DENIED)])
async def test_a_certificate_that_cannot_be_had_is_no_broken_login_of_the_server(
    cluster: Cluster, code: str, told: str
) -> None:
    """A server shuts out whoever breaks off too often: what is missing is known before it is connected to."""
    async with opened(cluster) as (made, server):
        made.auth.error = AuthError(code, "the auth service says no")
        with pytest.raises(dial.DialRefused, match="no certificate for database user") as raised:
            await made.agent.serve(preface(made), pair()[1])
        assert raised.value.code == told
        assert server.threads == 100
