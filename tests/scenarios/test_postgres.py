"""RFD 39, "Reducing the number of teleport proxy port by TLS ALPN Routing" and "tsh db connect", for PostgreSQL."""

from datetime import UTC, datetime, timedelta

import pytest

from monoport.access.claims import Destination

from .cluster import PUBLIC, Cluster
from .psql import Psql, Said, Server

ORDERS = Destination("db", "orders", "postgres", "alice", "app")


async def test_teleport_postgres_with_the_certificate_outside(cluster: Cluster, server: Server) -> None:
    """`tsh db connect`: the local proxy wraps plaintext PostgreSQL in TLS that shows the user's certificate."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)

    psql = Psql(await cluster.tls("teleport-postgres", user=alice))
    await psql.login("alice", "app")
    assert await psql.query("select 1") == ["alice: select 1"]

    (start,) = cluster.events("db.session.start")
    assert (start["user"], start["database"], start["db_user"]) == ("alice@example.com", "orders", "alice")
    (ran,) = cluster.events("db.query")
    assert (ran["statement"], ran["connection"]) == ("select 1", start["connection"])


async def test_teleport_postgres_with_the_certificate_inside(cluster: Cluster, server: Server) -> None:
    """`tsh proxy db`: the local proxy shows nothing, psql's own TLS inside brings the user's certificate."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)

    wrapped = await cluster.tls("teleport-postgres")
    psql = Psql(wrapped)
    await psql.encrypt(cluster.trusting(alice), PUBLIC)
    await psql.login("alice", "app")
    assert await psql.query("select 2") == ["alice: select 2"]
    assert (wrapped.selected_alpn, psql.stream is wrapped) == ("teleport-postgres", False)


async def test_nobody_logs_in_without_a_certificate(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)

    psql = Psql(await cluster.tls("teleport-postgres"))
    with pytest.raises(Said, match="a client certificate is required"):
        await psql.login("alice", "app")
    assert server.users == []


async def test_psql_straight_to_the_port(cluster: Cluster, server: Server) -> None:
    """`psql "host=orders.db.proxy.example.com sslmode=verify-full …"`: SSLRequest, then SNI says which database."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice")

    psql = Psql(cluster.connect())
    await psql.encrypt(cluster.trusting(alice), f"orders.db.{PUBLIC}")
    await psql.login("alice", "app")
    assert await psql.query("select 3") == ["alice: select 3"]

    (row,) = [row for row in cluster.proxy.connections.rows() if row["kind"] == "database"]
    assert (row["rule"], row["target"], row["user"]) == ("postgres-upgraded", "orders", "alice@example.com")


async def test_psql_straight_to_the_port_needs_a_certificate(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)

    psql = Psql(cluster.connect())
    await psql.encrypt(cluster.trusting(), f"orders.db.{PUBLIC}")  # in TLS 1.3 the client learns it with its first read
    with pytest.raises(ConnectionError, match="certificate required"):
        await psql.login("alice", "app")
    assert server.users == []


@pytest.mark.parametrize(
    ("user", "database", "says"),
    [
        ("postgres", "app", 'access to "orders" as database user "postgres" denied'),
        ("alice", "payroll", 'access to database "payroll" on "orders" denied'),
    ],
)
async def test_a_denial_names_the_refused_user_or_database(
    cluster: Cluster, server: Server, user: str, database: str, says: str
) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice")

    psql = Psql(cluster.connect())
    await psql.encrypt(cluster.trusting(alice), f"orders.db.{PUBLIC}")
    with pytest.raises(Said) as said:
        await psql.login(user, database)
    (denied,) = cluster.events("db.session.deny")
    assert str(said.value) == f"{says} [connection {denied['connection']}]", "the id that leads to log and events"
    assert server.users == []
    row = cluster.proxy.connections.rows()[-1]
    assert (row["code"], row["user"], row["kind"]) == ("database_denied", "alice@example.com", "database")


async def test_a_session_ends_with_its_certificate(cluster: Cluster, server: Server) -> None:
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)
    psql = Psql(await cluster.tls("teleport-postgres", user=alice))
    await psql.login("alice", "app")

    tomorrow = datetime.now(UTC) + timedelta(days=1)
    cluster.sweep(tomorrow)

    with pytest.raises(Said, match=r"^session ended: certificate expired \[connection [0-9a-f]+\]$"):
        await psql.query("select 1")


async def test_a_database_whose_agent_is_away(cluster: Cluster) -> None:
    alice = await cluster.user("alice")

    psql = Psql(cluster.connect())
    await psql.encrypt(cluster.trusting(alice), f"orders.db.{PUBLIC}")
    with pytest.raises(Said, match='database "orders" is not known here'):
        await psql.login("alice", "app")
