"""psql, psycopg and asyncpg through front door, handler and agent to a real PostgreSQL; only the tunnel is missing."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from monoport.access.claims import Destination
from monoport.access.resources import Lock, Role
from monoport.net.arrival import Arrival, Limits
from monoport.net.listener import Listener
from monoport.net.relay import relay
from monoport.net.sockets import connect
from monoport.net.tls import connect_tls
from monoport.proxy.cancels import EVENTS

from ...real.postgres import PostgresServer  # noqa: TID252 # tests are no package
from .postgres_door import Door, cancelled, opened, psql, until_sleeping
from .world import PUBLIC, Cluster, User

SETUP = """
create role alice login; create role reader login; create role keeper login replication;
create database app owner alice;
"""
DESTINATION = Destination("db", "orders", "postgres", "alice", "app")


@pytest.fixture(scope="session")
def server(cluster: Cluster, need: Callable[[str], str]) -> Iterator[PostgresServer]:
    need("postgres")
    made = PostgresServer(*cluster.database_server("localhost", "127.0.0.1"))
    made.start()
    made.sql(SETUP)
    yield made
    made.stop()


@pytest.fixture
async def door(cluster: Cluster, server: PostgresServer, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(cluster, server, tmp_path) as made:
        yield made


async def test_plain_psql_straight_to_the_port(door: Door, need: Callable[[str], str]) -> None:
    need("psql")
    user = door.world.cluster.user()
    query = (
        "select current_user || '/' || current_database() || '/' || ssl from pg_stat_ssl where pid = pg_backend_pid()"
    )
    assert await psql(door, door.dsn(user), "-c", query) == (0, "alice/app/true\n", "")
    (start,) = door.world.events("db.session.start")
    assert start["user"] == "alice@example.com"
    assert (start["database"], start["db_user"], start["db_name"]) == ("orders", "alice", "app")
    await until(lambda: door.world.events("db.session.end"))
    (end,) = door.world.events("db.session.end")
    assert end["bytes_out"] > 0
    (ran,) = door.world.events("db.query")
    assert ran["statement"] == query
    assert ran["connection"] == start["connection"]
    assert ran["source"].startswith("127.0.0.1:")


async def test_new_libpq_with_its_alpn(door: Door) -> None:
    assert psycopg.pq.version() >= 170000
    dsn = door.dsn(door.world.cluster.user(destination=DESTINATION), host=PUBLIC)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as client:
        assert client.info.server_version >= 150000
        rows = await (await client.execute("select i from generate_series(1, %s) i", (1000,))).fetchall()
        assert len(rows) == 1000
        named = await client.execute("select %s::int + 1", (41,), prepare=True)
        assert await named.fetchone() == (42,)
        again = await client.execute("select %s::int + 1", (42,), prepare=True)
        assert await again.fetchone() == (43,)
    extended = door.world.events("db.query")
    assert [one["statement"] for one in extended] == [
        "select i from generate_series(1, $1) i", "select $1::int + 1", "select $1::int + 1"
    ]  # fmt: skip
    assert [one["parameters"] for one in extended] == [1, 1, 1]
    assert [one["prepared"] for one in extended] == ["", "_pg3_0", "_pg3_0"]
    (prepared,) = door.world.events("db.prepare")
    assert prepared["prepared"] == "_pg3_0"


async def test_direct_tls_straight_to_the_port(door: Door) -> None:
    """libpq 17 and later begin with a ClientHello, ALPN `postgresql`, and no SSLRequest before it."""
    assert psycopg.pq.version() >= 170000
    for host, destination in ((f"orders.db.{PUBLIC}", None), (PUBLIC, DESTINATION)):
        user = door.world.cluster.user(destination=destination)
        dsn = door.dsn(user, host=host, more="sslnegotiation=direct")
        async with await psycopg.AsyncConnection.connect(dsn) as client:
            assert await (await client.execute("select current_user")).fetchone() == ("alice",)
            (live,) = list(door.connections)
            assert live.route is not None
            assert live.route.rule == "postgres-direct"
    assert len(door.world.events("db.session.start")) == 2


async def test_direct_tls_without_a_certificate_reaches_nobody(door: Door) -> None:
    dsn = door.dsn(door.world.cluster.user(), more="sslnegotiation=direct sslcert=/nowhere sslkey=/nowhere")
    before = door.server.log_text().count("connection received")
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect(dsn)
    assert door.world.tunnels.prefaces == []
    assert door.server.log_text().count("connection received") == before


REPLICA = {"db_labels": "*", "db_users": ["keeper"], "db_names": ["app", "replication"], "db_features": ["replication"]}


async def test_replication_where_a_role_allows_it(door: Door, need: Callable[[str], str]) -> None:
    need("psql")
    role = Role.model_validate({"metadata": {"name": "access"}, "spec": {"allow": REPLICA}})
    door.world.directory.roles = {"access": role}
    user = door.world.cluster.user(users=["keeper"])
    for value in ("database", "true", "1", "on", "yes"):
        dsn = door.dsn(user, more=f"user=keeper replication={value}")
        if value == "database":
            assert (await psql(door, dsn, "-c", "IDENTIFY_SYSTEM"))[1].rstrip().endswith("|app")
        else:  # pg_hba.conf of this server lets nobody in for physical replication: the server's own words come back
            assert "no pg_hba.conf entry for replication connection" in (await psql(door, dsn, "-c", "x"))[2]
    starts = door.world.events("db.session.start")
    assert [one["features"] for one in starts] == [["replication"]] * 5
    assert [one["statement"] for one in door.world.events("db.query")] == ["IDENTIFY_SYSTEM"]

    denied = Role.model_validate(
        {"metadata": {"name": "access"}, "spec": {"allow": REPLICA, "deny": {"db_features": ["*"]}}}
    )
    door.world.directory.roles = {"access": denied}
    before = door.server.log_text().count("connection received")
    code, _, err = await psql(door, door.dsn(user, more="user=keeper replication=database"), "-c", "IDENTIFY_SYSTEM")
    assert code == 2
    assert 'replication on "orders" denied' in err
    assert "deny.db_features" not in err, "the client learns only what was refused"
    assert door.server.log_text().count("connection received") == before
    (event,) = door.world.events("db.session.deny")
    assert event["rule"] == "role access: deny.db_features has * for replication"


async def test_protocol_3_2(door: Door) -> None:
    dsn = door.dsn(door.world.cluster.user(), more="max_protocol_version=latest")
    if psycopg.pq.version() < 180000:
        pytest.skip("libpq before 18 does not know protocol 3.2")
    async with await psycopg.AsyncConnection.connect(dsn) as client:
        assert await (await client.execute("select 1")).fetchone() == (1,)
        assert len(door.world.tunnels.prefaces[0].secret) == 32


@pytest.mark.parametrize("more", ["", "max_protocol_version=latest", "sslnegotiation=direct"])
async def test_cancel_really_cancels(door: Door, more: str) -> None:
    if more and psycopg.pq.version() < 180000:
        pytest.skip("libpq before 18 does not know protocol 3.2")
    async with await psycopg.AsyncConnection.connect(
        door.dsn(door.world.cluster.user(), more=more), autocommit=True
    ) as client:
        began = time.monotonic()
        outcome, _ = await asyncio.gather(
            client.execute("select pg_sleep(60)"), cancelled(door, client), return_exceptions=True
        )
        assert isinstance(outcome, psycopg.errors.QueryCanceled)
        assert time.monotonic() - began < 15
        assert await (await client.execute("select 2")).fetchone() == (2,)


async def test_ctrl_c_in_old_psql_cancels_in_plaintext(door: Door, need: Callable[[str], str]) -> None:
    process = await asyncio.create_subprocess_exec(
        need("psql"), "-XAtq", door.dsn(door.world.cluster.user()), "-c", "select pg_sleep(60)",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await until_sleeping(door)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(15):
        _, err = await process.communicate()
    assert b"canceling statement due to user request" in err
    assert [one.kind.value for one in door.world.tunnels.prefaces] == ["db", "db-cancel"]


async def test_guessed_cancel_keys_are_met_with_silence(door: Door) -> None:
    async with await psycopg.AsyncConnection.connect(door.dsn(door.world.cluster.user()), autocommit=True) as client:
        pid = client.pgconn.backend_pid
        packet = (16).to_bytes(4, "big") + (80877102).to_bytes(4, "big") + pid.to_bytes(4, "big") + b"gues"
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(packet)
        assert await reader.read() == b""
        writer.close()
        assert await (await client.execute("select 1")).fetchone() == (1,)
    assert [one.kind.value for one in door.world.tunnels.prefaces] == ["db"]


async def test_keys_guessed_at_random_cancel_nobody_and_are_told_of(door: Door) -> None:
    rand = random.Random(4711)
    async with await psycopg.AsyncConnection.connect(door.dsn(door.world.cluster.user()), autocommit=True) as client:
        sleeping = asyncio.create_task(client.execute("select pg_sleep(1), 'slept'"))  # noqa: TID251
        await until_sleeping(door)
        for number in range(100):
            pid = client.pgconn.backend_pid if number % 2 else rand.getrandbits(31)
            packet = (80877102).to_bytes(4, "big") + pid.to_bytes(4, "big") + rand.randbytes(4)
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write((16).to_bytes(4, "big") + packet)
            assert await reader.read() == b""
            writer.close()
        assert await (await sleeping).fetchone() == ("", "slept")
    assert [one.kind.value for one in door.world.tunnels.prefaces] == ["db"], "no guess went further than the proxy"
    told = door.world.events("db.cancel.deny")
    assert 1 <= len(told) <= EVENTS + 10
    assert all(one["source"].startswith("127.0.0.1:") for one in told)


async def test_a_listener_hears_after_hours_of_silence(door: Door) -> None:
    """No idle limit ends a session that waits for notifications; only its certificate's end does."""
    user = door.world.cluster.user(ttl=timedelta(hours=11))
    async with await psycopg.AsyncConnection.connect(door.dsn(user), autocommit=True) as client:
        await client.execute("listen orders")
        door.world.leases.sweep(datetime.now(UTC) + timedelta(hours=10), ())
        await asyncio.to_thread(door.server.sql, "notify orders, 'at last'", "app")
        async with asyncio.timeout(15):
            heard = await anext(client.notifies())
        assert (heard.channel, heard.payload) == ("orders", "at last")
        door.world.leases.sweep(datetime.now(UTC) + timedelta(hours=12), ())
        with pytest.raises(psycopg.OperationalError, match="session ended: certificate expired"):
            await client.execute("select 1")


async def test_asyncpg_with_prepared_statements_copy_and_pipelines(door: Door) -> None:
    user = door.world.cluster.user(destination=DESTINATION)
    client = await asyncpg.connect(
        host="127.0.0.1", port=door.port, user="alice", database="app", ssl=door.context(user), timeout=15
    )
    try:
        assert await client.fetchval("select $1::int * 2", 21) == 42
        await client.execute("create temp table t (a int, b text)")
        rows = [(n, "x" * 1000) for n in range(20_000)]
        assert await client.copy_records_to_table("t", records=rows) == "COPY 20000"
        assert await client.fetchval("select count(*) from t") == 20_000
        await client.executemany("insert into t values ($1, $2)", [(n, "y") for n in range(200)])
        got: list[bytes] = []

        async def take(data: bytes) -> None:
            got.append(data)

        await client.copy_from_query("select b from t", output=take)
        assert sum(map(len, got)) > 20_000_000
        with pytest.raises(asyncio.TimeoutError):
            await client.fetchval("select pg_sleep(60)", timeout=0.3)  # cancels
        assert await client.fetchval("select 1") == 1
    finally:
        await client.close()
    assert any("COPY" in str(one["statement"]) for one in door.world.events("db.query"))
    assert len(door.world.events("db.copy")) == 1
    inserts = [one for one in door.world.events("db.query") if "insert into t" in str(one["statement"])]
    assert len(inserts) == 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "template1"}, 'access to database "template1" on "orders" denied'),
        ({"more": "user=reader"}, 'access to "orders" as database user "reader" denied'),
        ({"host": f"nosuch.db.{PUBLIC}"}, 'database "nosuch" is not known here'),
        ({"more": "replication=database"}, 'replication on "orders" denied'),
    ],
)
async def test_refusals_in_psqls_own_words(door: Door, change: dict[str, str], says: str) -> None:
    before = door.world.events("db.session.start")
    code, out, err = await psql(door, door.dsn(door.world.cluster.user(), **change), "-c", "select 1")  # type: ignore[arg-type]
    assert (code, out) == (2, "")
    assert says in err
    assert door.world.events("db.session.start") == before


@pytest.mark.parametrize(
    ("destination", "change", "says"),
    [
        (Destination("db", "other"), {}, 'certificate is for database "other", not for "orders"'),
        (Destination("app", "grafana"), {}, "not for databases"),
        (DESTINATION, {"name": "postgres"}, 'certificate is for database "app"'),
        (DESTINATION, {"more": "user=reader"}, 'certificate is for user "alice"'),
        (Destination("db", "orders", "mysql"), {}, "does not speak PostgreSQL"),
        (None, {"host": PUBLIC}, "names no database"),
    ],
)
async def test_certificate_sni_and_startup_must_agree(
    door: Door, destination: Destination | None, change: dict[str, str], says: str
) -> None:
    user = door.world.cluster.user(destination=destination, users=["alice", "reader"], databases=["app", "postgres"])
    code, _, err = await psql(door, door.dsn(user, **change), "-c", "select 1")  # type: ignore[arg-type]
    assert code == 2
    assert says in err
    (denied,) = door.world.events("db.session.deny")
    assert says in denied["reason"]


async def test_the_servers_own_refusal_reaches_the_client(door: Door) -> None:
    user = door.world.cluster.user(users=["nobody"])
    code, _, err = await psql(door, door.dsn(user, more="user=nobody"), "-c", "select 1")
    assert code == 2
    assert 'role "nobody" does not exist' in err


async def test_no_certificate_no_byte_to_the_agent(door: Door) -> None:
    dsn = door.dsn(door.world.cluster.user()).replace("sslcert=", "sslcert=/nowhere")
    code, _, err = await psql(door, dsn, "-c", "select 1")
    assert code == 2
    assert err
    assert door.world.tunnels.prefaces == []


async def test_inside_outer_tls_without_certificate_the_inner_tls_brings_it(
    door: Door, need: Callable[[str], str]
) -> None:
    need("psql")
    user = door.world.cluster.user(destination=DESTINATION)
    async with local_proxy(door, None) as port:
        dsn = door.dsn(user, host=PUBLIC).replace(f"port={door.port}", f"port={port}")
        assert await psql(door, dsn, "-c", "select current_user") == (0, "alice\n", "")
        code, _, err = await psql(door, dsn.replace("verify-full", "disable"), "-c", "select current_user")
        assert code == 2
        assert "a client certificate is required" in err


@pytest.mark.parametrize("mode", ["disable", "prefer"])
async def test_with_outer_certificate_the_client_needs_none(door: Door, need: Callable[[str], str], mode: str) -> None:
    need("psql")
    user = door.world.cluster.user(destination=DESTINATION)
    async with local_proxy(door, user) as port:
        dsn = f"host=127.0.0.1 port={port} user=alice dbname=app sslmode={mode}"
        assert await psql(door, dsn, "-c", "select current_user") == (0, "alice\n", "")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as client:
            outcome, _ = await asyncio.gather(
                client.execute("select pg_sleep(60)"), cancelled(door, client), return_exceptions=True
            )
            assert isinstance(outcome, psycopg.errors.QueryCanceled)


@pytest.mark.parametrize("busy", [False, True])
async def test_a_locked_user_is_told_and_ended(door: Door, busy: bool) -> None:
    lock = Lock.model_validate({"kind": "lock", "metadata": {"name": "l1"}, "spec": {"target": {"user": "alice"}}})
    client = await psycopg.AsyncConnection.connect(door.dsn(door.world.cluster.user()), autocommit=True)

    async def end() -> None:
        if busy:
            await until_sleeping(door)
        assert door.world.leases.sweep(datetime.now(UTC), [lock]) == 1
        assert door.connections.leases.sweep(datetime.now(UTC), [lock]) == 1
        await until(lambda: not len(door.connections))

    query = "select pg_sleep(60)" if busy else "select 1"
    async with asyncio.timeout(5):
        if busy:
            outcome, _ = await asyncio.gather(client.execute(query), end(), return_exceptions=True)
            assert isinstance(outcome, psycopg.errors.QueryCanceled)
        else:
            await end()
        with pytest.raises(psycopg.OperationalError) as caught:
            await client.execute("select 1")
    assert "session ended: locked" in str(caught.value)
    await client.close()
    (ended,) = door.world.events("db.session.end")
    assert ended["reason"].startswith("locked")


async def test_an_expired_certificate_ends_its_session(door: Door) -> None:
    async with await psycopg.AsyncConnection.connect(door.dsn(door.world.cluster.user()), autocommit=True) as client:
        assert door.world.leases.sweep(datetime.now(UTC) + timedelta(hours=2), []) == 1
        with pytest.raises(psycopg.errors.AdminShutdown, match="certificate expired"):
            await client.execute("select 1")


async def test_a_database_that_is_down(door: Door, server: PostgresServer) -> None:
    server.stop(remove=False)
    try:
        code, _, err = await psql(door, door.dsn(door.world.cluster.user()), "-c", "select 1")
    finally:
        server.start()
    assert code == 2
    assert 'database "orders" cannot be reached from its agent' in err
    assert str(server.port) not in err.replace(f"port {door.port}", ""), "where it listens stays with the agent"


async def test_a_server_that_asks_for_a_password(door: Door, server: PostgresServer) -> None:
    server.set_hba("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    try:
        code, _, err = await psql(door, door.dsn(door.world.cluster.user()), "-c", "select 1")
    finally:
        server.set_hba()
    assert code == 2
    assert "asks for SCRAM authentication" in err
    assert "HINT:  In the server's pg_hba.conf" in err
    assert "a password_file" in err


async def test_client_certificates_are_asked_for_once(door: Door) -> None:
    dsn = door.dsn(door.world.cluster.user())
    for _ in range(3):
        async with await psycopg.AsyncConnection.connect(dsn) as client:
            await client.execute("select 1")
    assert door.world.auth.asked == ["alice"]


@asynccontextmanager
async def local_proxy(door: Door, user: User | None) -> AsyncIterator[int]:
    """What `tsh proxy db` does: outer TLS with the private ALPN name, with the user's certificate or without."""
    cas = "".join(door.world.cluster.trusted.host)
    context = door.context(user) if user else ssl.create_default_context(cadata=cas)
    context.set_alpn_protocols(["teleport-postgres"])

    async def serve(arrival: Arrival) -> None:
        arrival.routed()
        arrival.settled()
        arrival.stream.unread(arrival.first)
        raw = await connect("127.0.0.1", door.port)
        async with await connect_tls(raw, context, server_hostname="localhost") as far:
            await relay(arrival.stream, far)

    listening = socket.create_server(("127.0.0.1", 0))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Listener([listening], serve, Limits()).run())
        yield listening.getsockname()[1]
        running.cancel()


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 # what is waited for happens in other processes
            await asyncio.sleep(0.01)
