"""mariadb, PyMySQL and mysql-connector through front door, handler and agent to a real MariaDB, without a tunnel."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mysql.connector
import pymysql
import pytest

from monoport import protocols
from monoport.access.claims import Destination
from monoport.access.resources import Role
from monoport.auth.keys import load_chain
from monoport.net.arrival import Limits
from monoport.net.listener import Listener
from monoport.net.sockets import connect
from monoport.proxy import connection
from monoport.proxy.registry import Connections
from monoport.routing.outcome import Kind
from monoport.routing.table import build
from monoport.wire.mysql.handshake import Answer, ServerRefusal
from monoport.wire.mysql.packets import packet

from ...real.mariadb import MariaDbServer  # noqa: TID252 # tests are no package
from ...scenarios.mysql import BASIC, Mysql  # noqa: TID252
from .world import PUBLIC, Cluster, User, World, configured, world

SETUP = """
create database app; create database other;
create user alice require subject '/O=example.com/OU=orders/CN=alice'; grant all on app.* to alice;
grant all on other.* to alice;
create user reader identified by 'a secret:with colon'; grant select on app.* to reader;
create table app.blobs (b longblob);
"""
DESTINATION = Destination("db", "orders", "mysql", "alice", "")


@pytest.fixture(scope="session")
def server(cluster: Cluster, need: Callable[[str], str]) -> Iterator[MariaDbServer]:
    need("mariadbd")
    made = MariaDbServer(*cluster.database_server("localhost", "127.0.0.1"), "--local-infile=1")
    made.start()
    made.sql(SETUP)
    yield made
    made.stop()


@dataclass
class Door:
    """A proxy that greets, on one port of loopback, with an agent behind it."""

    port: int
    world: World
    folder: Path
    server: MariaDbServer

    def files(self, user: User) -> dict[str, str]:
        certificate, key = user.files(self.folder)
        root = self.folder / "cas.pem"
        root.write_text("".join(self.world.cluster.trusted.host))
        return {"ca": str(root), "cert": str(certificate), "key": str(key)}

    def user(self, **more: Any) -> User:
        return self.world.cluster.user(destination=DESTINATION, databases=("app", "other"), **more)

    def pymysql(self, person: User | None = None, **more: Any) -> pymysql.Connection:
        files = self.files(person or self.user())
        words = {"host": "127.0.0.1", "port": self.port, "user": "alice", "database": "app", "connect_timeout": 15}
        tls = {f"ssl_{name}": path for name, path in files.items()}
        return pymysql.connect(**(words | tls | {"ssl_verify_cert": True, "ssl_verify_identity": True} | more))

    def connector(self, **more: Any) -> Any:
        tls = {f"ssl_{name}": path for name, path in self.files(self.user()).items()}
        words = {"host": "127.0.0.1", "port": self.port, "user": "alice", "database": "app", "use_pure": True}
        return mysql.connector.connect(**(words | tls | more))

    async def mariadb(self, *words: str, user: User | None = None) -> tuple[int, str]:
        tls = [f"--ssl-{name}={path}" for name, path in self.files(user or self.user()).items()]
        where = ["--host=127.0.0.1", f"--port={self.port}", "--user=alice", "--ssl-verify-server-cert"]
        process = await asyncio.create_subprocess_exec(
            "mariadb", "--no-defaults", *where, *tls, "-NB", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    def statements(self, kind: str = "db.query") -> list[Any]:
        return [event["statement"] for event in self.world.events(kind)]


@asynccontextmanager
async def opened(cluster: Cluster, server: MariaDbServer, folder: Path, **more: Any) -> AsyncIterator[Door]:
    """The door to a server, with that in the agent's configuration."""
    orders = configured(port=server.port, protocol="mysql").model_copy(update=more)
    async with world(cluster, orders) as made, asyncio.TaskGroup() as group:
        table = build(
            [PUBLIC], "example.com", frozenset({Kind.DATABASE}), [one.routing for one in protocols.TABLE.values()]
        )
        front = connection.FrontDoor(
            table, made.contexts, Connections(), {Kind.DATABASE: made.proxy.serve}, lambda: cluster.trusted
        )
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        listener = Listener(
            [listening], lambda arrival: connection.serve(arrival, front), Limits(), greets={listening: 0.0}
        )
        running = group.create_task(listener.run())
        yield Door(port, made, folder, server)
        running.cancel()


@pytest.fixture
async def door(cluster: Cluster, server: MariaDbServer, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(cluster, server, tmp_path) as made:
        yield made


def rows(client: Any, statement: str, *values: Any) -> Any:
    with client.cursor() as cursor:
        cursor.execute(statement, *values)
        return cursor.fetchall()


async def test_client_certificates_are_asked_for_once(door: Door) -> None:
    """After the first connection none calls the auth service: its certificate is kept, roles are watched."""
    for _ in range(3):
        with closing(await asyncio.to_thread(door.pymysql)) as client:
            assert await asyncio.to_thread(rows, client, "select 1") == ((1,),)
    assert door.world.auth.asked == ["alice"]


async def test_the_mariadb_client_and_databases_of_the_role(door: Door) -> None:
    assert await door.mariadb("-e", "select user(), database(), 1") == (0, "alice@127.0.0.1\tNULL\t1\n")
    assert await door.mariadb("app", "-e", "select database(); use other; select database()") == (0, "app\nother\n")
    for words in (["mysql", "-e", "select 1"], ["-e", "use mysql; select 1"]):
        code, said = await door.mariadb(*words)
        assert code == 1
        assert 'database "mysql"' in said
    assert "select user(), database(), 1" in door.statements()
    (denied,) = door.world.events("db.query.deny")
    assert (denied["command"], denied["rule"][:26]) == ("init_db", "no role allows mysql by al")


async def test_use_in_any_text_is_judged_and_the_session_goes_on(door: Door) -> None:
    def talk() -> None:
        flags = pymysql.constants.CLIENT.MULTI_STATEMENTS
        with closing(door.pymysql(client_flag=flags)) as client:
            for text in ("select 1; use mysql", "/*!50000 use*/ `mysql`", "-- x\nUSE mysql", "Use\tmysql;select 2"):
                with pytest.raises(pymysql.err.OperationalError, match='"mysql"') as raised:
                    client.query(text)
                assert raised.value.args[0] == 1044
            assert rows(client, "select 'use mysql', database()") == (("use mysql", "app"),)
            client.query("select 3; use other")
            client.next_result()
            assert rows(client, "select database()") == (("other",),)
            with pytest.raises(pymysql.err.OperationalError, match='"mysql"'):
                client.select_db("mysql")
            client.ping(reconnect=False)

    await asyncio.to_thread(talk)
    assert len(door.world.events("db.query.deny")) == 5


async def test_prepared_statements_are_named_and_their_parameters_counted(door: Door) -> None:
    def talk() -> None:
        with closing(door.connector()) as client, client.cursor(prepared=True) as cursor:
            for number in range(3):
                cursor.execute("select %s + %s, repeat('x', 300)", (number, 1))
                assert cursor.fetchall()[0][0] == number + 1

    await asyncio.to_thread(talk)
    assert door.statements("db.prepare") == ["select ? + ?, repeat('x', 300)"]
    runs = [event for event in door.world.events("db.query") if "prepared" in event]
    assert [(run["statement"], run["parameters"]) for run in runs] == [("select ? + ?, repeat('x', 300)", 2)] * 3
    assert len({run["prepared"] for run in runs}) == 1


async def test_packets_over_16_mib_both_ways(door: Door) -> None:
    blob = bytes(range(256)) * 66_000  # 16.9 million bytes, of which many need escaping

    def talk() -> None:
        with closing(door.pymysql(max_allowed_packet=64 << 20)) as client:
            rows(client, "insert into blobs values (%s)", (blob,))
            assert rows(client, "select length(b) from blobs") == ((len(blob),),)
            assert rows(client, "select b from blobs")[0][0] == blob
            rows(client, "delete from blobs")

    await asyncio.to_thread(talk)
    (insert,) = [event for event in door.world.events("db.query") if "sha256" in event]
    assert insert["statement"].startswith("insert into blobs values (")
    assert insert["length"] > len(blob)


@pytest.mark.parametrize("compress", [False, True])
async def test_many_rows(door: Door, compress: bool) -> None:
    def talk() -> None:
        with closing(door.connector(compress=compress, read_timeout=30)) as client:
            found = rows(client, "select seq, repeat('x', 400) from seq_1_to_20000")
            assert len(found) == 20_000
            assert found[-1] == (20_000, "x" * 400)
            assert rows(client, "select length(%s)", ("y" * 300_000,)) == [(300_000,)]
            for size in (40_000, 200_000, 3_000_000, 20_000_000):
                assert rows(client, f"select repeat('z', {size}), 1") == [("z" * size, 1)]

    await asyncio.to_thread(talk)
    code, said = await door.mariadb(*(["--compress"] if compress else []), "-e", "select repeat('z', 100000)")
    assert (code, said) == (0, "z" * 100_000 + "\n")


async def test_kill_reaches_the_own_thread_by_the_number_that_was_told(door: Door) -> None:
    def talk() -> float:
        with closing(door.pymysql()) as sleeper, closing(door.pymysql()) as killer:
            ((real,),) = rows(sleeper, "select connection_id()")
            assert real != sleeper.thread_id()
            sleeper._execute_command(3, "select sleep(60), 'asleep'")
            running = f"select count(*) from information_schema.processlist where id = {real} and info like '%asleep%'"
            deadline = time.monotonic() + 15
            while door.server.sql(running) != "1\n":
                assert time.monotonic() < deadline
            began = time.monotonic()
            rows(killer, f"kill query {sleeper.thread_id()}")
            with pytest.raises(pymysql.err.OperationalError, match="interrupted"):
                sleeper._read_query_result()
            killer.kill(sleeper.thread_id())
            with pytest.raises(pymysql.err.OperationalError):
                rows(sleeper, "select 1")
            return time.monotonic() - began

    assert await asyncio.to_thread(talk) < 15
    assert any("kill query" in (statement or "") for statement in door.statements())


async def test_nobody_elses_thread_is_killed(door: Door) -> None:
    def talk() -> None:
        bob = door.world.cluster.user("bob", destination=DESTINATION)
        with closing(door.pymysql()) as alice, closing(door.pymysql(bob)) as other:
            ((real,),) = rows(alice, "select connection_id()")
            for number in (alice.thread_id(), real):
                for text in (f"kill {number}", f"KILL QUERY {number}", f"select 1; kill hard connection {number}"):
                    with pytest.raises(pymysql.err.OperationalError, match="Unknown thread id"):
                        rows(other, text)
                with pytest.raises(pymysql.err.OperationalError, match="Unknown thread id"):
                    other.kill(number)
            for text in ("kill user alice", "kill query id 7", "kill (select 1)", "kill @x"):
                with pytest.raises(pymysql.err.NotSupportedError, match="KILL takes a thread's number"):
                    rows(other, text)
            assert rows(alice, "select 1") == ((1,),)

    await asyncio.to_thread(talk)


async def test_ctrl_c_in_the_mariadb_client(door: Door) -> None:
    tls = [f"--ssl-{name}={path}" for name, path in door.files(door.user()).items()]
    process = await asyncio.create_subprocess_exec(
        "mariadb", "--no-defaults", "--host=127.0.0.1", f"--port={door.port}", "--user=alice", *tls, "-NB", "--force",
        "-e", "select sleep(60), 'asleep'; select 'after'",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    asleep = "select count(*) from information_schema.processlist where info like 'select sleep(60)%'"
    while await asyncio.to_thread(door.server.sql, asleep) != "1\n":
        assert process.returncode is None
    process.send_signal(2)
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert await asyncio.to_thread(door.server.sql, asleep) == "0\n", out


async def test_another_user_within_a_session(door: Door) -> None:
    def talk() -> None:
        with closing(door.connector()) as client:
            with pytest.raises(mysql.connector.Error, match="cannot be changed within a session"):
                client.cmd_change_user("reader", "a secret:with colon")
            assert rows(client, "select user()")[0][0].startswith("alice@")

    await asyncio.to_thread(talk)
    assert "a secret" not in str(door.world.agent_audit.events)


@pytest.mark.parametrize("password", ["", "typed by habit"])
@pytest.mark.parametrize("plugin", ["mysql_native_password", "caching_sha2_password", "mysql_clear_password"])
async def test_whatever_a_client_sends_for_a_password_is_thrown_away(door: Door, plugin: str, password: str) -> None:
    def talk() -> None:
        with closing(door.connector(password=password, auth_plugin=plugin)) as client:
            assert rows(client, "select 1") == [(1,)]

    await asyncio.to_thread(talk)
    assert "typed by habit" not in str(door.world.audit.events) + str(door.world.agent_audit.events)


async def test_files_of_the_client_only_where_a_role_says_so(door: Door) -> None:
    path = door.folder / "rows"
    path.write_bytes(b"from a file\n" * 5000)
    load = f"load data local infile '{path}' into table blobs"

    def talk(allowed: bool) -> None:
        with closing(door.pymysql(local_infile=True)) as client:
            if not allowed:
                with pytest.raises(pymysql.err.OperationalError, match="local_infile"):
                    rows(client, load)
            else:
                rows(client, load)
                assert rows(client, "select count(*), b from blobs group by b") == ((5000, b"from a file"),)
            rows(client, "delete from blobs")

    await asyncio.to_thread(talk, False)
    assert door.world.events("db.copy") == []
    access = door.world.directory.roles["access"]
    allow = access.spec.allow.model_copy(update={"db_features": ("local_infile",)})
    more = Role(metadata=access.metadata, spec=access.spec.model_copy(update={"allow": allow}))
    door.world.directory.roles = {**door.world.directory.roles, "access": more}
    await asyncio.to_thread(talk, True)
    assert len(door.world.events("db.copy")) == 1


@pytest.mark.parametrize("running", ["select sleep(60)", ""])
async def test_a_session_that_must_end_is_told_so(door: Door, running: str) -> None:
    client = await asyncio.to_thread(door.pymysql)
    ((real,),) = await asyncio.to_thread(rows, client, "select connection_id()")
    if running:
        client._execute_command(3, running)
        busy = f"select count(*) from information_schema.processlist where id = {real} and info is not null"
        while await asyncio.to_thread(door.server.sql, busy) != "1\n":
            pass
    door.world.leases.sweep(datetime.now(UTC) + timedelta(days=1), ())

    def hear() -> None:
        if running:
            with pytest.raises(pymysql.err.OperationalError, match="interrupted"):
                client._read_query_result()
        rows(client, "select 'too late'")

    with pytest.raises(pymysql.err.OperationalError, match=r"session ended: certificate expired|Lost connection|gone"):
        await asyncio.to_thread(hear)
    client.close()
    assert "select 'too late'" not in door.statements()


async def test_sni_names_the_database_where_the_certificate_does_not(door: Door) -> None:
    user = door.world.cluster.user(databases=("app",))
    context = ssl.create_default_context(cadata="".join(door.world.cluster.trusted.host))
    load_chain(context, user.certificate, user.key)
    for name, says in (("orders", ""), ("payroll", '"payroll" is not known here')):
        client = Mysql(await connect("127.0.0.1", door.port))
        assert (await client.greeted()).thread
        await client.encrypt(context, f"{name}.db.{PUBLIC}")
        if says:
            with pytest.raises(ServerRefusal, match=says):
                await client.login("alice", "app")
        else:
            await client.login("alice", "app")
            assert (await client.query("select 1"))[:1] == b"\1"
        client.stream.abort()


async def test_bytes_ahead_of_tls_are_never_a_login(door: Door) -> None:
    user = door.user()
    context = ssl.create_default_context(cadata="".join(door.world.cluster.trusted.host))
    load_chain(context, user.certificate, user.key)
    client = Mysql(await connect("127.0.0.1", door.port))
    await client.greeted()
    with pytest.raises(ConnectionError):
        await client.encrypt(context, f"orders.db.{PUBLIC}", ahead=packet(2, Answer(BASIC, "alice").encode()))
    assert door.world.tunnels.prefaces == []


async def test_the_version_is_the_real_servers(door: Door) -> None:
    (engine,) = door.world.agent._engines.values()
    version = await engine.probe()
    assert "MariaDB" in version
    assert "Aborted" not in door.server.log_text().rpartition("monoport_health")[2].partition("\n")[2]


async def test_a_password_that_users_never_see(cluster: Cluster, server: MariaDbServer, tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("reader:a secret:with colon\nalice:wrong\n")
    file.chmod(0o600)
    destination = Destination("db", "orders", "mysql", "", "app")
    async with opened(cluster, server, tmp_path, password_file=file) as door:
        user = cluster.user(destination=destination, users=("alice", "reader", "mallory"))

        def talk(name: str) -> Any:
            with closing(door.pymysql(user, user=name)) as client:
                return rows(client, "select substring_index(current_user(), '@', 1)")

        assert await asyncio.to_thread(talk, "reader") == (("reader",),)
        assert door.world.auth.asked == [], "no certificate is asked for"
        with pytest.raises(pymysql.err.OperationalError, match="Access denied") as raised:
            await asyncio.to_thread(talk, "alice")
        assert "wrong" not in str(raised.value)
        with pytest.raises(pymysql.err.OperationalError, match="has no password for this database user"):
            await asyncio.to_thread(talk, "mallory")


async def test_a_server_with_another_name_is_refused(cluster: Cluster, tmp_path: Path, server: MariaDbServer) -> None:
    orders = configured(port=server.port, protocol="mysql", server_name="db.internal")
    async with opened(cluster, server, tmp_path, tls=orders.tls) as door:
        with pytest.raises(pymysql.err.OperationalError, match="cannot be reached over TLS"):
            await asyncio.to_thread(door.pymysql)


async def test_a_certificate_for_another_database(door: Door) -> None:
    other = door.world.cluster.user(destination=Destination("db", "payroll", "mysql", "alice", "app"))
    with pytest.raises(pymysql.err.OperationalError, match='database "payroll" is not known here'):
        await asyncio.to_thread(door.pymysql, other)
    with pytest.raises(pymysql.err.OperationalError, match='certificate is for user "alice"'):
        await asyncio.to_thread(lambda: door.pymysql(user="reader"))
    context = ssl.create_default_context(cadata="".join(door.world.cluster.trusted.host))
    with pytest.raises((pymysql.err.OperationalError, ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(
            lambda: pymysql.connect(host="127.0.0.1", port=door.port, user="alice", ssl=context, connect_timeout=15)
        )
    with pytest.raises(pymysql.err.OperationalError, match="TLS with a client certificate is required"):
        await asyncio.to_thread(
            lambda: pymysql.connect(host="127.0.0.1", port=door.port, user="alice", ssl_disabled=True)
        )
