"""Sessions that the proxy opens and cannot read: TLS from our own client to the agent, whatever carries it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monoport.access.claims import Destination
from monoport.agents import sealed
from monoport.agents.sealed import SEALING
from monoport.audit.outage import NotRecorded
from monoport.client.front import Credentials
from monoport.client.profile import Profile
from monoport.client.sealed import agent_context, relay_sealed
from monoport.errors import Failure
from monoport.net.memory import pair
from monoport.net.meter import Meter
from monoport.net.stream import LINGER, Stream
from monoport.net.tls import TlsError, TlsStream, connect_tls
from monoport.proxy import database
from monoport.tunnel.sealing import BINDING, MAX_OPENING
from monoport.wire.postgres.messages import StartupMessage

from .cluster import CLUSTER, PATIENCE, Cluster, User
from .psql import Psql, Said, Server

ALPN = "teleport-postgres-sealed"
LOCKED = {"target": {"user": "alice"}}
ORDERS = Destination("db", "orders", "postgres", "alice", "app")
OPENING = StartupMessage(0, {"user": "alice", "database": "app"}).encode()


def files(user: User, folder: Path) -> Credentials:
    """A user's certificate and key as `tsh` keeps them."""
    found = Credentials(folder / f"{user.certificates.user}.crt", folder / f"{user.certificates.user}.key")
    found.certificate.write_text(user.certificates.certificate)
    found.key.write_text(user.key.private)
    return found


def profile(cluster: Cluster) -> Profile:
    """As much of a login as sealing looks at."""
    made = object.__new__(Profile)
    object.__setattr__(made, "cluster", CLUSTER)
    object.__setattr__(made, "cas", cluster.auth.cas.to_json())
    return made


@asynccontextmanager
async def local_proxy(cluster: Cluster, user: User, folder: Path, meter: Meter) -> AsyncIterator[Psql]:
    """psql on a local proxy of ours that has asked for a sealed session."""
    remote = await cluster.tls(ALPN, "teleport-postgres", user=user)
    context = agent_context(profile(cluster), files(user, folder))
    near, local = pair()
    async with asyncio.TaskGroup() as group:
        group.create_task(relay_sealed(local, remote, context, profile(cluster), meter))
        async with remote:
            yield Psql(near)
            near.close()


def row(cluster: Cluster) -> dict[str, object]:
    (found,) = [one for one in cluster.proxy.connections.rows() if one["kind"] == "database"]
    return found


async def test_psql_notices_nothing_and_the_proxy_neither(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    async with local_proxy(cluster, alice, tmp_path, meter := Meter()) as psql:
        await psql.login("alice", "app")
        assert await psql.query("select 'a secret'") == ["alice: select 'a secret'"]
        assert (row(cluster)["rule"], row(cluster)["user"]) == ("postgres-sealed", "alice@example.com")
    assert meter.bytes_out > 60
    (ran,) = cluster.events("db.query")
    (start,) = cluster.events("db.session.start")
    assert (ran["statement"], ran["connection"]) == ("select 'a secret'", start["connection"])
    await cluster.until(lambda: cluster.events("db.session.end"))
    (end,) = cluster.events("db.session.end")
    assert end["bytes_in"] > 1000, "what the proxy has joined: a handshake and records, within which it sees nothing"


async def until_aside(cluster: Cluster, user: User, binding: bytes = bytes(BINDING)) -> tuple[Stream, TlsStream]:
    """What a client holds once the proxy has stepped aside, and the TLS that it came with."""
    outer = await cluster.tls(ALPN, user=user)
    await outer.write(OPENING)
    assert await outer.read() == b""
    await outer.write(binding)
    outer.send_eof()
    return outer.leave(), outer


def inner(cluster: Cluster, user: User | None = None) -> ssl.SSLContext:
    context = cluster.trusting(user)
    context.check_hostname = False
    return context


def kinds(cluster: Cluster) -> set[object]:
    """What there is in `tctl conns ls`."""
    return {one["kind"] for one in cluster.proxy.connections.rows()}


async def over(cluster: Cluster) -> str:
    """Why the only session ended, as the audit log has it; nobody holds anything of it any more."""
    await cluster.until(lambda: cluster.events("db.session.end"))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        while any(service.leases for service in cluster.services) or "database" in kinds(cluster):  # noqa: ASYNC110
            await asyncio.sleep(0)
    (end,) = cluster.events("db.session.end")
    return str(end["reason"])


async def refused(stream: TlsStream, binding: bytes = bytes(BINDING)) -> None:
    """Fail unless the agent ends it at once, for all that it was given the right binding."""
    await stream.write(binding)
    async with asyncio.timeout(SEALING / 2):
        with pytest.raises(ConnectionError):
            await stream.read_exactly(1)


async def test_only_who_opened_it_goes_on(cluster: Cluster, server: Server) -> None:
    """The proxy decided for alice: nobody else's certificate, and none, is good for what follows."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    mallory = await cluster.user("mallory", db=ORDERS)
    for other in (mallory, None):
        below, outer = await until_aside(cluster, alice)
        await refused(await connect_tls(below, inner(cluster, other), server_hostname=None))
        outer.abort()
    assert server.users == []
    below, outer = await until_aside(cluster, alice)
    await below.write(b"select 'in the clear'" * 10)
    with pytest.raises(ConnectionError):
        await below.read_exactly(1000)
    outer.abort()
    assert server.users == []
    assert not cluster.events("db.query")


async def test_only_the_client_that_opened_it_goes_on(cluster: Cluster, server: Server) -> None:
    """The same user's other session does not: between the two TLS the network could have swapped them."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    below, outer = await until_aside(cluster, alice, bytes(BINDING))
    other = await connect_tls(below, inner(cluster, alice), server_hostname=None)
    await other.write(b"x" * BINDING)
    await refused(other)
    outer.abort()
    assert await over(cluster)
    assert server.users == []
    below, outer = await until_aside(cluster, alice, b"x" * BINDING)
    same = await connect_tls(below, inner(cluster, alice), server_hostname=None)
    await same.write(b"x" * BINDING)
    assert await same.read_exactly(1) == b"R"
    outer.abort()


async def test_a_client_that_says_too_much_before(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)
    outer = await cluster.tls(ALPN, user=await cluster.user("alice", db=ORDERS))
    await outer.write(OPENING)
    assert await outer.read() == b""
    outer.send(bytes(MAX_OPENING))
    assert await over(cluster) == f"the session was not sealed: its client said over {MAX_OPENING} bytes before"


async def test_the_agent_knows_the_certificate_however_the_proxy_writes_it(
    cluster: Cluster, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ssl.DER_cert_to_PEM_cert
    monkeypatch.setattr(database.ssl, "DER_cert_to_PEM_cert", lambda der: f"of alice:\n{write(der)}")
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    async with local_proxy(cluster, alice, tmp_path, Meter()) as psql:
        await psql.login("alice", "app")


async def test_another_host_of_the_cluster_is_no_agent(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    """What a proxy could join a client with: a node, whose certificate is of the same CA."""
    await cluster.database("orders", server.port)
    node = await cluster.node("web-1")
    service = cluster.services[0]
    service.agent._handler.__self__._sealer._host = lambda: node.host.credentials  # type: ignore[attr-defined]
    alice = await cluster.user("alice", db=ORDERS)
    remote = await cluster.tls(ALPN, "teleport-postgres", user=alice)
    context = agent_context(profile(cluster), files(alice, tmp_path))
    near, local = pair()
    near.send(OPENING)
    with pytest.raises(Failure, match=r"^the agent of the database cannot be believed: \S+ serves none$"):
        async with asyncio.timeout(PATIENCE), remote:
            await relay_sealed(local, remote, context, profile(cluster), Meter())
    await over(cluster)
    assert server.users == []


async def test_a_statement_that_cannot_be_recorded_is_not_run(
    cluster: Cluster, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)

    async def full(_entries: object) -> None:
        raise NotRecorded

    async with local_proxy(cluster, alice, tmp_path, Meter()) as psql:
        await psql.login("alice", "app")
        monkeypatch.setattr(cluster.audit, "emit_all", full)
        with pytest.raises(Said, match=r"^session ended: the statement could not be recorded"):
            await psql.query("select 1")
        assert await psql.stream.read() == b""
    assert not cluster.events("db.query")
    (service,) = cluster.services
    assert not service.leases


async def test_what_is_refused_is_said_before(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    async with local_proxy(cluster, alice, tmp_path, Meter()) as psql:
        with pytest.raises(Said, match='database "payroll"'):
            await psql.login("alice", "payroll")
        assert await psql.stream.read() == b"", "and then the connection ends as a refused one does"
    assert server.users == []


async def test_no_certificate_no_sealed_session(cluster: Cluster) -> None:
    outer = await cluster.tls(ALPN, "teleport-postgres")
    assert outer.selected_alpn == ALPN
    with pytest.raises(TlsError, match="certificate required"):
        await outer.read()


async def test_it_ends_with_its_certificate_in_its_own_words(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    async with local_proxy(cluster, alice, tmp_path, Meter()) as psql:
        await psql.login("alice", "app")
        cluster.sweep(datetime.now(UTC) + timedelta(days=1))
        with pytest.raises(Said, match=r"^session ended: certificate expired \[connection [0-9a-f]+\]$"):
            await psql.query("select 1")


@pytest.mark.parametrize("alpn", [ALPN, "teleport-postgres"])
async def test_the_log_says_why_also_where_the_agent_noticed_first(cluster: Cluster, server: Server, alpn: str) -> None:
    """Agent and proxy look once a second, each by itself; the client may be gone before the second of them has."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    if alpn == ALPN:
        below, outer = await until_aside(cluster, alice)
        psql = Psql(await connect_tls(below, inner(cluster, alice), server_hostname=None))
        await psql.stream.write(bytes(BINDING))
        await psql._until_ready()
    else:
        psql = Psql(outer := await cluster.tls(alpn, user=alice))
        await psql.login("alice", "app")
    await cluster.admin.create({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": LOCKED})
    (service,) = cluster.services
    await cluster.until(lambda: cluster.known.locks and service.member.cache.locks)
    service.sweep(datetime.now(UTC))
    with pytest.raises(Said, match=r"^session ended: locked: user alice"):
        await psql.query("select 1")
    psql.stream.close()
    outer.close()
    assert await over(cluster) == "locked: user alice"


async def test_an_older_tls_is_refused_within_and_no_ticket_given(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    old = inner(cluster, alice)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    below, outer = await until_aside(cluster, alice)
    with pytest.raises(TlsError):
        await connect_tls(below, old, server_hostname=None)
    outer.abort()
    below, outer = await until_aside(cluster, alice)
    stream = await connect_tls(below, inner(cluster, alice), server_hostname=None)
    await stream.write(bytes(BINDING))
    await Psql(stream)._until_ready()
    session = stream._ssl.session
    assert session is None or not session.has_ticket, "who resumes shows no certificate"
    outer.abort()


async def test_an_agent_that_seals_nothing_is_refused(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    (service,) = cluster.services
    service.agent._handler.__self__._sealer = None  # type: ignore[attr-defined]
    outer = await cluster.tls(ALPN, user=alice)
    with pytest.raises(Said, match="this agent seals no sessions"):
        await Psql(outer).login("alice", "app")
    assert cluster.refused() == "database_offline"
    outer.abort()


async def test_a_client_that_ends_is_not_waited_for(cluster: Cluster, server: Server, tmp_path: Path) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    async with local_proxy(cluster, alice, tmp_path, Meter()) as psql:
        await psql.login("alice", "app")
        psql.stream.send(b"X\0\0\0\4")
        psql.stream.send_eof()
        assert await psql.stream.read() == b""
    await cluster.until(lambda: cluster.events("db.session.end"))
    (end,) = cluster.events("db.session.end")
    assert end["seconds"] < LINGER / 2


async def test_a_client_that_does_not_end_its_tls_is_cut(
    cluster: Cluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SEALING", 0.05)
    await cluster.database("orders", server.port)
    outer = await cluster.tls(ALPN, user=await cluster.user("alice", db=ORDERS))
    await outer.write(OPENING)
    assert await outer.read() == b""
    assert await over(cluster) == "the session was not sealed within 0.05 s"
    async with asyncio.timeout(PATIENCE):
        await outer.wait_closed()


async def test_a_client_that_is_gone_before_its_session_is_sealed(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)
    outer = await cluster.tls(ALPN, user=await cluster.user("alice", db=ORDERS))
    await outer.write(OPENING)
    assert await outer.read() == b""
    outer.abort()
    assert await over(cluster) == "the peer has reset the connection"


async def test_a_client_that_never_shakes_hands_is_cut_by_the_agent(
    cluster: Cluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "SEALING", 0.05)
    await cluster.database("orders", server.port)
    below, outer = await until_aside(cluster, await cluster.user("alice", db=ORDERS))
    with pytest.raises(ConnectionError):
        await below.read()
    assert await over(cluster) == "the channel was cut"
    outer.abort()


async def test_locked_before_the_handshake_the_session_is_over(cluster: Cluster, server: Server) -> None:
    """At the agent itself, whatever the proxy does: here it is not swept."""
    await cluster.database("orders", server.port)
    below, outer = await until_aside(cluster, await cluster.user("alice", db=ORDERS))
    (service,) = cluster.services
    await cluster.until(lambda: cluster.events("db.session.start"))
    service.sweep(datetime.now(UTC) + timedelta(days=1))
    async with asyncio.timeout(sealed.SEALING / 2):
        with pytest.raises(ConnectionError):
            await below.read()
    assert await over(cluster) == "the channel was cut"
    outer.abort()
