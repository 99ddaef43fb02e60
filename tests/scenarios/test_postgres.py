"""rfd39.md, "Reducing the number of teleport proxy port by TLS ALPN Routing", for PostgreSQL."""

from monoport.access.claims import Destination

from .cluster import Cluster
from .psql import Psql, Server

ORDERS = Destination("db", "orders", "postgres", "alice", "app")


async def test_teleport_postgres_with_the_certificate_outside(cluster: Cluster, server: Server) -> None:
    """`tsh db connect`: the local proxy wraps plaintext PostgreSQL in TLS that shows the user's certificate."""
    await cluster.database("orders", server.port)
    alice = await cluster.user("alice", db=ORDERS)

    wrapped = await cluster.tls("teleport-postgres", user=alice)
    psql = Psql(wrapped)
    await psql.login("alice", "app")
    assert await psql.query("select 1") == ["alice: select 1"]

    assert wrapped.selected_alpn == "teleport-postgres"
    (start,) = cluster.events("db.session.start")
    assert (start["user"], start["database"], start["db_user"]) == ("alice@example.com", "orders", "alice")
    (ran,) = cluster.events("db.query")
    assert (ran["statement"], ran["connection"]) == ("select 1", start["connection"])
