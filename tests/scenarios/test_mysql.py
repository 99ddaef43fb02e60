"""RFD 39, "Reducing the number of teleport proxy port by TLS ALPN Routing" and "tsh db connect", for MySQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monoport.access.claims import Destination
from monoport.wire.mysql.handshake import ServerRefusal

from .cluster import PUBLIC, Cluster
from .mysql import OK, VERSION, Mysql, Server

ORDERS = Destination("db", "orders", "mysql", "alice", "app")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Auth service and proxy, whose one port speaks MySQL to clients that say nothing."""
    async with Cluster.running(tmp_path, more=", mysql_on_silence: 1s") as made:
        yield made


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[Server]:
    """A MySQL server on loopback with a certificate of the cluster's database CA, behind an agent."""
    async with Server.running(cluster) as made:
        await cluster.database("orders", made.port, "mysql")
        yield made


async def test_teleport_mysql_with_the_certificate_outside(cluster: Cluster, server: Server) -> None:
    """`tsh db connect`: the local proxy wraps plaintext MySQL in TLS that shows the user's certificate."""
    alice = await cluster.user("alice", db=ORDERS)

    mysql = Mysql(await cluster.tls("teleport-mysql", user=alice))
    await mysql.greeted()
    assert await mysql.login("alice", "app") == OK
    assert await mysql.query("select 1") == OK
    assert server.users == ["alice"]

    (start,) = cluster.events("db.session.start")
    assert (start["user"], start["database"], start["db_user"]) == ("alice@example.com", "orders", "alice")
    (ran,) = cluster.events("db.query")
    assert (ran["statement"], ran["connection"]) == ("select 1", start["connection"])


async def test_the_greeting_is_the_real_servers_own(cluster: Cluster, server: Server) -> None:
    """It is made before the agent has been asked: the version is from the agent's last look at the server."""
    alice = await cluster.user("alice", db=ORDERS)
    await cluster.until(lambda: any(one.spec.server_version for one in cluster.known.databases()))

    mysql = Mysql(await cluster.tls("teleport-mysql", user=alice))
    assert (await mysql.greeted()).version == VERSION
    mysql.stream.abort()


async def test_teleport_mysql_with_the_certificate_inside(cluster: Cluster, server: Server) -> None:
    """`tsh proxy db`: the local proxy shows nothing, the client's own TLS inside brings the user's certificate."""
    alice = await cluster.user("alice", db=ORDERS)

    wrapped = await cluster.tls("teleport-mysql")
    mysql = Mysql(wrapped)
    await mysql.greeted()
    await mysql.encrypt(cluster.trusting(alice), PUBLIC)
    assert await mysql.login("alice", "app") == OK
    assert await mysql.query("select 2") == OK
    assert (wrapped.selected_alpn, mysql.stream is wrapped) == ("teleport-mysql", False)


async def test_nobody_logs_in_without_a_certificate(cluster: Cluster, server: Server) -> None:
    mysql = Mysql(await cluster.tls("teleport-mysql"))
    await mysql.greeted()
    with pytest.raises(ServerRefusal, match="a client certificate is required"):
        await mysql.login("alice", "app")
    assert server.users == []


async def test_a_client_that_waits_to_be_greeted(cluster: Cluster, server: Server) -> None:
    """`mariadb --host=orders.db.proxy.example.com --ssl-cert=…`: MySQL's own TLS, and SNI in it says which database."""
    alice = await cluster.user("alice")

    mysql = Mysql(cluster.connect(silent=True))
    await mysql.greeted()
    await mysql.encrypt(cluster.trusting(alice), f"orders.db.{PUBLIC}")
    assert await mysql.login("alice", "app") == OK
    assert await mysql.query("select 3") == OK

    (row,) = [row for row in cluster.proxy.connections.rows() if row["kind"] == "database"]
    assert (row["target"], row["user"]) == ("orders", "alice@example.com")


async def test_a_client_that_waits_to_be_greeted_needs_a_certificate(cluster: Cluster, server: Server) -> None:
    mysql = Mysql(cluster.connect(silent=True))
    await mysql.greeted()
    await mysql.encrypt(
        cluster.trusting(), f"orders.db.{PUBLIC}"
    )  # in TLS 1.3 the client learns it with its first read
    with pytest.raises(ConnectionError, match="certificate required"):
        await mysql.login("alice", "app")
    assert server.users == []


@pytest.mark.parametrize(
    ("user", "database", "says"),
    [
        ("root", "app", 'access to "orders" as database user "root" denied'),
        ("alice", "payroll", 'access to database "payroll" on "orders" denied'),
    ],
)
async def test_a_denial_names_the_refused_user_or_database(
    cluster: Cluster, server: Server, user: str, database: str, says: str
) -> None:
    alice = await cluster.user("alice")

    mysql = Mysql(cluster.connect(silent=True))
    await mysql.greeted()
    await mysql.encrypt(cluster.trusting(alice), f"orders.db.{PUBLIC}")
    with pytest.raises(ServerRefusal) as said:
        await mysql.login(user, database)
    (denied,) = cluster.events("db.session.deny")
    assert str(said.value) == f"{says} [connection {denied['connection']}]", "the id that leads to log and events"
    assert said.value.code == 1045
    assert server.users == []
    row = cluster.proxy.connections.rows()[-1]
    assert (row["code"], row["user"], row["kind"]) == ("database_denied", "alice@example.com", "database")


async def test_use_of_another_database_is_denied_and_the_session_goes_on(cluster: Cluster, server: Server) -> None:
    alice = await cluster.user("alice")

    mysql = Mysql(await cluster.tls("teleport-mysql", sni=f"orders.db.{PUBLIC}", user=alice))
    await mysql.greeted()
    await mysql.login("alice")  # of MySQL's sessions, many begin without a database
    assert await mysql.query("use app") == OK
    with pytest.raises(ServerRefusal, match='access to database "payroll" on "orders" denied') as denied:
        await mysql.query("use payroll")
    assert denied.value.code == 1044
    assert await mysql.query("select 4") == OK

    assert [ran["statement"] for ran in cluster.events("db.query")] == ["use app", "select 4"]
    (refused,) = cluster.events("db.query.deny")
    assert refused["statement"] == "use payroll"


async def test_a_session_ends_with_its_certificate(cluster: Cluster, server: Server) -> None:
    alice = await cluster.user("alice", db=ORDERS)
    mysql = Mysql(await cluster.tls("teleport-mysql", user=alice))
    await mysql.greeted()
    await mysql.login("alice", "app")

    tomorrow = datetime.now(UTC) + timedelta(days=1)
    cluster.sweep(tomorrow)

    with pytest.raises(ServerRefusal, match=r"^session ended: certificate expired \[connection [0-9a-f]+\]$"):
        await mysql.query("select 1")


async def test_a_database_whose_agent_is_away(cluster: Cluster) -> None:
    alice = await cluster.user("alice")

    mysql = Mysql(cluster.connect(silent=True))
    await mysql.greeted()
    await mysql.encrypt(cluster.trusting(alice), f"orders.db.{PUBLIC}")
    with pytest.raises(ServerRefusal, match='database "orders" is not known here') as unknown:
        await mysql.login("alice", "app")
    assert unknown.value.code == 1049
