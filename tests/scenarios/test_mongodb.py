"""RFD 39, "Reducing the number of teleport proxy port by TLS ALPN Routing" and "tsh db connect", for MongoDB."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from monoport.access.claims import Destination

from .cluster import PUBLIC, Cluster
from .mongo import Mongo, Server, document_of, read_message

ORDERS = Destination("db", "orders", "mongodb", "alice", "")
FIND = {"find": "people", "$db": "app"}
UNAUTHORIZED = 13


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[Server]:
    """A MongoDB server on loopback with a certificate of the cluster's database CA, behind an agent."""
    async with Server.running(cluster) as made:
        await cluster.database("orders", made.port, "mongodb")
        yield made


async def test_teleport_mongodb_with_the_certificate_outside(cluster: Cluster, server: Server) -> None:
    """`tsh db connect`: the local proxy wraps plaintext MongoDB in TLS that shows the user's certificate."""
    alice = await cluster.user("alice", db=ORDERS)

    mongo = Mongo(await cluster.tls("teleport-mongodb", user=alice))
    hello = await mongo.hello("alice")
    assert hello["ok"] == 1.0
    assert "hosts" not in hello, "of a replica set, whose members a driver would look for past the proxy"
    assert await mongo.run(FIND) == {"ran": "find", "ok": 1.0}
    assert server.users == ["alice"]

    (start,) = cluster.events("db.session.start")
    assert (start["user"], start["database"], start["db_user"]) == ("alice@example.com", "orders", "alice")
    (ran,) = cluster.events("db.query")
    assert (ran["statement"], ran["connection"]) == ("find app.people", start["connection"])


async def test_teleport_mongodb_with_the_certificate_inside(cluster: Cluster, server: Server) -> None:
    """`tsh proxy db`: the local proxy shows nothing, the driver's own TLS inside brings the user's certificate."""
    alice = await cluster.user("alice", db=ORDERS)

    wrapped = await cluster.tls("teleport-mongodb")
    mongo = Mongo(wrapped)
    await mongo.encrypt(cluster.trusting(alice), PUBLIC)
    await mongo.hello("alice")
    assert await mongo.run(FIND) == {"ran": "find", "ok": 1.0}
    assert (wrapped.selected_alpn, mongo.stream is wrapped) == ("teleport-mongodb", False)


async def test_nobody_begins_without_a_certificate(cluster: Cluster, server: Server) -> None:
    """Not in plaintext inside the outer TLS either: what comes there must be a ClientHello."""
    mongo = Mongo(await cluster.tls("teleport-mongodb"))
    with pytest.raises(ConnectionError):
        await mongo.hello("alice")
    assert server.users == []


async def test_a_driver_straight_to_the_port(cluster: Cluster, server: Server) -> None:
    """`mongodb://orders.db.proxy.example.com/?tls=true&…`: TLS with no ALPN, and SNI says which database."""
    alice = await cluster.user("alice")

    mongo = Mongo(await cluster.tls(sni=f"orders.db.{PUBLIC}", user=alice))
    await mongo.hello("alice")
    assert await mongo.run(FIND) == {"ran": "find", "ok": 1.0}

    (row,) = [row for row in cluster.proxy.connections.rows() if row["kind"] == "database"]
    assert (row["rule"], row["target"], row["user"]) == ("database-name", "orders", "alice@example.com")


async def test_a_driver_straight_to_the_port_needs_a_certificate(cluster: Cluster, server: Server) -> None:
    mongo = Mongo(await cluster.tls(sni=f"orders.db.{PUBLIC}"))  # in TLS 1.3 the client learns it with its first read
    with pytest.raises(ConnectionError, match="certificate required"):
        await mongo.hello("alice")
    assert server.users == []


async def test_who_is_denied_hears_it_as_the_answer_to_the_first_command(cluster: Cluster, server: Server) -> None:
    """A driver shows only how its own commands fail: hello is answered as a server would, so that one is sent."""
    alice = await cluster.user("alice")

    mongo = Mongo(await cluster.tls(sni=f"orders.db.{PUBLIC}", user=alice))
    assert (await mongo.hello("root"))["ok"] == 1.0
    said = await mongo.run(FIND)

    (denied,) = cluster.events("db.session.deny")
    says = f'access to "orders" as database user "root" denied [connection {denied["connection"]}]'
    assert (said["ok"], said["code"], said["errmsg"]) == (0.0, UNAUTHORIZED, says)
    assert server.users == []


async def test_another_database_is_denied_and_the_session_goes_on(cluster: Cluster, server: Server) -> None:
    """Each command names its database, so each is a question of its own; what is denied does not reach the server."""
    alice = await cluster.user("alice", db=ORDERS)

    mongo = Mongo(await cluster.tls("teleport-mongodb", user=alice))
    await mongo.hello("alice")
    drop = {"dropDatabase": 1, "$db": "payroll"}
    said = await mongo.run(drop)
    assert (said["ok"], said["code"]) == (0.0, UNAUTHORIZED)
    assert said["errmsg"].startswith('access to database "payroll" on "orders" denied')
    assert (await mongo.run(FIND))["ran"] == "find"

    assert [next(iter(asked)) for asked in server.asked] == ["find"]
    (refused,) = cluster.events("db.query.deny")
    assert (refused["command"], refused["in_database"]) == ("dropDatabase", "payroll")


async def test_a_session_ends_with_its_certificate(cluster: Cluster, server: Server) -> None:
    alice = await cluster.user("alice", db=ORDERS)
    mongo = Mongo(await cluster.tls("teleport-mongodb", user=alice))
    await mongo.hello("alice")
    await mongo.run(FIND)

    tomorrow = datetime.now(UTC) + timedelta(days=1)
    cluster.sweep(tomorrow)

    said = document_of(await read_message(mongo.stream))  # before another command is asked
    assert said["ok"] == 0.0
    assert "session ended: certificate expired [connection " in said["errmsg"]


async def test_a_database_whose_agent_is_away(cluster: Cluster) -> None:
    alice = await cluster.user("alice")

    mongo = Mongo(await cluster.tls("teleport-mongodb", sni=f"orders.db.{PUBLIC}", user=alice))
    await mongo.hello("alice")
    said = await mongo.run(FIND)
    assert 'database "orders" is not known here' in said["errmsg"]
