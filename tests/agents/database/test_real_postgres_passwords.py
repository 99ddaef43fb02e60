"""Users of a real PostgreSQL that knows them by password: the agent's file proves it, and they never see it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from monoport.auth.keys import load_chain
from monoport.config.model import DatabaseTls
from monoport.net.arrival import Arrival, Limits
from monoport.net.listener import Listener
from monoport.net.relay import relay
from monoport.net.sockets import connect
from monoport.net.tls import connect_tls, serve_tls
from monoport.wire.postgres.messages import SSL_REQUEST, message

from ...real.postgres import PostgresServer  # noqa: TID252 # tests are no package
from .postgres_door import Door, cancelled, opened, psql
from .scripted import read_message, read_packet
from .world import Cluster

WORDS = "correct horse: battery"
UMLAUT = "pa\u0308sswo\u0308rter"  # with accents of their own; the server stores what SASLprep makes of it
NAMES = ("alice", "hashed", "umlaut", "wrong", "unknown", "mallory")
SETUP = f"""
create role alice login password '{WORDS}'; create role wrong login password 'quite another';
create role umlaut login password '{UMLAUT}';
set password_encryption = 'md5';
create role hashed login password '{WORDS}';
create database app owner alice;
"""
FILE = f"alice:{WORDS}\nhashed:{WORDS}\numlaut:{UMLAUT}\nwrong:{WORDS}\nunknown:{WORDS}\n"
WHO = "select current_user"


def hba(method: str) -> str:
    return f"local all all trust\nhostssl all all 127.0.0.1/32 {method}\n"


@pytest.fixture(scope="module")
def server(cluster: Cluster, need: Callable[[str], str]) -> Iterator[PostgresServer]:
    need("postgres")
    need("psql")
    made = PostgresServer(*cluster.database_server("localhost", "127.0.0.1"))
    made.start()
    made.sql(SETUP)
    yield made
    made.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "passwords"
    rewrite(found, FILE)
    return found


def rewrite(file: Path, text: str, mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


async def ask(door: Door, user: str, query: str = WHO) -> tuple[int, str, str]:
    """psql as the database user, who has nothing but a certificate of the cluster."""
    person = door.world.cluster.user(users=NAMES)
    return await psql(door, door.dsn(person, more=f"user={user}"), "-wc", query)


@pytest.mark.parametrize(
    ("method", "users"),
    [("scram-sha-256", ("alice", "umlaut")), ("md5", ("alice", "hashed")), ("password", ("alice", "hashed", "umlaut"))],
)
async def test_a_password_that_users_never_see(
    cluster: Cluster, server: PostgresServer, file: Path, tmp_path: Path, method: str, users: tuple[str, ...]
) -> None:
    server.set_hba(hba(method))
    async with opened(cluster, server, tmp_path, password_file=file) as door:
        for user in users:
            assert await ask(door, user) == (0, f"{user}\n", "")
        assert door.world.auth.asked == [], "no certificate is asked for"
        assert [one["statement"] for one in door.world.events("db.query")] == [WHO] * len(users)
        for user in ("wrong", "unknown"):
            code, out, err = await ask(door, user)
            assert (code, out) == (2, "")
            assert f'does not take its agent\'s password for "{user}": ask whoever runs its agent' in err
            assert WORDS not in err
        code, _, err = await ask(door, "mallory")
        assert code == 2
        assert "has no password for this database user" in err
        assert file.name not in err, "where the file is stays with the agent"
        told = [*door.world.audit.events, *door.world.agent_audit.events]
        assert WORDS not in repr(told)


async def test_the_file_is_read_for_every_session(
    cluster: Cluster, server: PostgresServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.set_hba(hba("scram-sha-256"))
    async with opened(cluster, server, tmp_path, password_file=file) as door:
        assert (await ask(door, "alice"))[0] == 0
        await asyncio.to_thread(rewrite, file, "alice:outdated\n")
        assert "does not take its agent's password" in (await ask(door, "alice"))[2]
        await asyncio.to_thread(rewrite, file, FILE, 0o644)
        before = server.log_text().count("connection received")
        assert "has no password for this database user" in (await ask(door, "alice"))[2]
        assert server.log_text().count("connection received") == before
        await asyncio.to_thread(rewrite, file, FILE)
        assert (await ask(door, "alice"))[0] == 0
    logged = capsys.readouterr().out
    assert "SQLSTATE 28P01" in logged
    assert "expected mode 0600" in logged
    assert WORDS not in logged
    assert "outdated" not in logged


async def test_ctrl_c_and_health_need_no_password(
    cluster: Cluster, server: PostgresServer, file: Path, tmp_path: Path
) -> None:
    server.set_hba(hba("scram-sha-256"))
    async with opened(cluster, server, tmp_path, password_file=file) as door:
        dsn = door.dsn(cluster.user())
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as client:
            await asyncio.to_thread(file.unlink)
            engine = door.world.agent._engines["orders"]
            assert await engine.probe() == ""
            async with asyncio.timeout(30):
                outcome, _ = await asyncio.gather(
                    client.execute("select pg_sleep(60)"), cancelled(door, client), return_exceptions=True
                )
            assert isinstance(outcome, psycopg.errors.QueryCanceled)
            assert await (await client.execute("select 2")).fetchone() == (2,)


async def test_a_server_that_asks_for_what_the_agent_has_not(
    cluster: Cluster, server: PostgresServer, file: Path, tmp_path: Path
) -> None:
    async with opened(cluster, server, tmp_path, password_file=file) as door:
        server.set_hba(hba("cert"))
        assert "connection requires a valid client certificate" in (await ask(door, "alice"))[2]
        server.set_hba(hba("trust"))
        assert await ask(door, "alice") == (0, "alice\n", "")
        server.set_hba("local all all trust\n")
        assert "no pg_hba.conf entry" in (await ask(door, "alice"))[2]


INSECURE = DatabaseTls(mode="insecure")


async def test_a_server_whose_name_is_not_verified_is_not_told_the_password_itself(
    cluster: Cluster, server: PostgresServer, file: Path, tmp_path: Path
) -> None:
    async with opened(cluster, server, tmp_path, password_file=file, tls=INSECURE) as door:
        for method, user in (("scram-sha-256", "alice"), ("md5", "hashed")):
            server.set_hba(hba(method))
            assert await ask(door, user) == (0, f"{user}\n", "")
        server.set_hba(hba("password"))
        code, _, err = await ask(door, "alice")
        assert code == 2
        assert "it wants the password itself, and tls.mode insecure does not prove who asks" in err


@asynccontextmanager
async def between(cluster: Cluster, server: PostgresServer, *, strip: bool) -> AsyncIterator[int]:
    """Somebody with a certificate of their own between agent and server, who may take away the offer of binding."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key, _ = Cluster().database_server("localhost")
    load_chain(own, certificate, key)
    onward = ssl.create_default_context(cadata=cluster.trusted.db[0])

    async def serve(arrival: Arrival) -> None:
        arrival.routed()
        arrival.settled()
        arrival.stream.unread(arrival.first)
        assert await arrival.stream.read_exactly(8) == SSL_REQUEST
        await arrival.stream.write(b"S")
        near = await serve_tls(arrival.stream, own)
        raw = await connect("127.0.0.1", server.port)
        await raw.write(SSL_REQUEST)
        assert await raw.read_exactly(1) == b"S"
        far = await connect_tls(raw, onward, server_hostname="localhost")
        if strip:
            await far.write(await read_packet(near))
            kind, body = await read_message(far)
            assert b"SCRAM-SHA-256-PLUS\0" in body
            await near.write(message(kind, body.replace(b"SCRAM-SHA-256-PLUS\0", b"")))
        await relay(near, far)

    listening = socket.create_server(("127.0.0.1", 0))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Listener([listening], serve, Limits()).run())
        yield listening.getsockname()[1]
        running.cancel()


@pytest.mark.parametrize(
    ("strip", "says", "logs"),
    [
        (False, "does not take its agent's password", "channel binding check failed"),
        (True, "SCRAM channel binding negotiation error", "thinks the server does not"),
    ],
)
async def test_whoever_stands_between_cannot_pass_a_proof_on(
    cluster: Cluster, server: PostgresServer, file: Path, tmp_path: Path, strip: bool, says: str, logs: str
) -> None:
    """Not even with tls.mode insecure, by which the agent talks TLS with anyone."""
    server.set_hba(hba("scram-sha-256"))
    async with (
        between(cluster, server, strip=strip) as port,
        opened(cluster, server, tmp_path, port, password_file=file, tls=INSECURE) as door,
    ):
        code, out, err = await ask(door, "alice")
        assert (code, out) == (2, "")
        assert says in err
    assert logs in server.log_text()
    async with (
        between(cluster, server, strip=strip) as port,
        opened(cluster, server, tmp_path, port, password_file=file) as door,
    ):
        assert "cannot be reached over TLS" in (await ask(door, "alice"))[2]
