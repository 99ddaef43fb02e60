"""PyMongo through front door, handler and agent to a real server; only the tunnel is missing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure

from monoport import protocols
from monoport.access.claims import Destination
from monoport.config.model import Database as Configured
from monoport.net.arrival import Arrival, Limits
from monoport.net.listener import Listener
from monoport.proxy import connection
from monoport.proxy.registry import Connections
from monoport.routing.outcome import Kind
from monoport.routing.table import build

from ...real.ferretdb import FerretServer  # noqa: TID252 # tests are no package
from .world import PUBLIC, Cluster, User, World, world


def destination(database: str = "", user: str = "alice") -> Destination:
    return Destination("db", "orders", "mongodb", user, database)


@pytest.fixture(scope="session")
def server(cluster: Cluster) -> Iterator[FerretServer]:
    made = FerretServer(*cluster.database_server("localhost", "127.0.0.1"))
    made.start()
    yield made
    made.stop()


@dataclass
class Door:
    """A whole proxy on one port of loopback, with an agent behind it."""

    port: int
    world: World
    folder: Path

    def options(self, user: User) -> dict[str, Any]:
        certificate, key = user.files(self.folder)
        bundle, root = self.folder / "bundle.pem", self.folder / "cas.pem"
        bundle.write_text(certificate.read_text() + key.read_text())
        root.write_text("".join(self.world.cluster.trusted.host))
        return {"tls": True, "tlsCAFile": str(root), "tlsCertificateKeyFile": str(bundle)}

    @asynccontextmanager
    async def client(self, user: User, **more: Any) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
        settings = {"directConnection": True, "serverSelectionTimeoutMS": 10_000} | self.options(user) | more
        async with AsyncMongoClient(f"orders.db.{PUBLIC}", self.port, **settings) as client:
            yield client


@asynccontextmanager
async def opened(cluster: Cluster, folder: Path, **how: Any) -> AsyncIterator[Door]:
    orders = Configured.model_validate({"name": "orders", "protocol": "mongodb", **how})
    async with world(cluster, orders) as made, asyncio.TaskGroup() as group:
        rules = [one.routing for one in protocols.TABLE.values()]
        table = build([PUBLIC], "example.com", frozenset({Kind.DATABASE}), rules)
        front = connection.FrontDoor(
            table, made.contexts, Connections(), {Kind.DATABASE: made.proxy.serve}, lambda: cluster.trusted
        )

        async def serve(arrival: Arrival) -> None:
            await connection.serve(arrival, front)

        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener = Listener([listening], serve, Limits())
        running = group.create_task(listener.run())
        yield Door(listening.getsockname()[1], made, folder)
        running.cancel()


@pytest.fixture(autouse=True)
def _resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a DNS entry for *.db.<public address> does for users."""
    ask = socket.getaddrinfo

    def answer(host: str | None, *words: Any, **more: Any) -> Any:
        return ask("127.0.0.1" if host == f"orders.db.{PUBLIC}" else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.fixture
async def door(cluster: Cluster, server: FerretServer, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(cluster, tmp_path, uri=f"localhost:{server.port}") as made:
        yield made


async def test_client_certificates_are_asked_for_once(door: Door) -> None:
    """After the first connection none calls the auth service, for monitors and pools neither."""
    user = door.world.cluster.user(destination=destination())
    for _ in range(3):
        async with door.client(user) as client:
            await client.app.command("ping")
    assert len(door.world.events("db.session.start")) > 3
    assert door.world.auth.asked == ["alice"]


async def test_reading_and_writing(door: Door) -> None:
    user = door.world.cluster.user(destination=destination())
    async with door.client(user) as client:
        people = client.app.people
        await people.drop()
        await people.insert_many([{"n": n, "pad": "x" * 100} for n in range(1000)])
        assert await people.count_documents({}) == 1000
        assert len([one async for one in people.find({"n": {"$gte": 10}}, batch_size=200)]) == 990
        await people.update_many({"n": {"$lt": 5}}, {"$set": {"pad": "y"}})
        await people.delete_one({"n": 999})
        assert await people.count_documents({"pad": "y"}) == 5
        with pytest.raises(OperationFailure, match="about the whole server"):
            await client.app.command("buildinfos")
    ran = door.world.events("db.query")
    assert {one["in_database"] for one in ran if one["command"] != "endSessions"} == {"app"}
    commands = [(one["command"], one["collection"]) for one in ran if one["command"] != "getMore"]
    assert commands[:4] == [("drop", "people"), ("insert", "people"), ("aggregate", "people"), ("find", "people")]
    assert "update app.people" in [one["statement"] for one in ran]
    assert not any("xxx" in str(one) for one in ran), "no values in the log"
    assert {one["user"] for one in door.world.events("db.session.start")} == {"alice@example.com"}


async def test_what_is_large(door: Door) -> None:
    """Documents of nearly 16 MB in both directions, and more than that in one message."""
    user = door.world.cluster.user(destination=destination())
    async with door.client(user) as client:
        files = client.app.files
        await files.drop()
        await files.insert_many([{"_id": n, "data": b"x" * 7_000_000} for n in range(3)])
        assert [len(one["data"]) async for one in files.find()] == [7_000_000] * 3
        await files.drop()


@pytest.mark.parametrize("names", [("app",), ("app", "other", "admin")])
async def test_database_names_count_for_every_command(door: Door, names: tuple[str, ...]) -> None:
    user = door.world.cluster.user(destination=destination(), databases=names)
    everything = door.world.cluster.user(destination=destination(), databases=("app", "other"))
    async with door.client(everything) as client:
        for name in ("app", "other"):
            await client[name].things.insert_one({"n": 1})
    async with door.client(user) as client:
        await client.app.things.find_one()
        if len(names) > 1:
            await client.other.things.find_one()
            assert {"app", "other"} <= set(await client.list_database_names())
            await client.drop_database("other")
            assert (await client.admin.command("serverStatus"))["ok"] == 1.0
            return
        assert await client.list_database_names() == ["app"]
        for attempt in (
            client.other.things.find_one,
            lambda: client.other.things.insert_one({}),
            lambda: client.drop_database("other"),
            client.other.list_collection_names,
            lambda: client.app.things.aggregate([{"$out": {"db": "other", "coll": "c"}}]),
            lambda: client.admin.command({"renameCollection": "app.things", "to": "other.stolen"}),
            lambda: client.admin.command("serverStatus"),
        ):
            with pytest.raises(OperationFailure, match="denied") as refused:
                await attempt()
            assert refused.value.code == 13
            assert refused.value.details["codeName"] == "Unauthorized"
        with pytest.raises(OperationFailure, match="not for users"):
            await client.app.command("applyOps", [])
        assert await client.app.things.find_one()  # the connection goes on
    denied = door.world.events("db.query.deny")
    assert [one["command"] for one in denied][:3] == ["find", "insert", "dropDatabase"]
    assert 'access to database "other" on "orders" denied' in denied[0]["reason"]
    assert all(one["in_database"] != "other" for one in door.world.events("db.query")[-2:])


async def test_a_certificate_for_one_database_opens_no_other(door: Door) -> None:
    user = door.world.cluster.user(destination=destination("app"), databases=("app", "other"))
    async with door.client(user) as client:
        await client.app.things.find_one()
        says = 'database "other" of "orders" denied: this certificate is for database "app"'
        with pytest.raises(OperationFailure, match=says):
            await client.other.things.find_one()


async def test_who_is_refused_is_told_at_once(door: Door) -> None:
    """Not by a time-out of server selection: hello is answered, and the first command says why."""
    user = door.world.cluster.user(destination=destination(user="nobody"))
    async with door.client(user, serverSelectionTimeoutMS=60_000) as client:
        with pytest.raises(OperationFailure, match=r'"nobody" denied \[connection \w+\]') as refused:
            await client.app.things.find_one()
        assert refused.value.code == 13


async def test_another_user_s_name_in_the_connection_string(door: Door) -> None:
    user = door.world.cluster.user(destination=destination())
    with_name = {"username": "CN=alice", "authMechanism": "MONGODB-X509"}
    async with door.client(user, **with_name) as client:
        assert await client.app.things.count_documents({}) >= 0
    async with door.client(user, **(with_name | {"username": "bob"})) as client:
        with pytest.raises(OperationFailure, match='certificate is for user "alice"'):
            await client.app.things.find_one()
    async with door.client(user, username="alice", password="guess", authSource="admin") as client:
        with pytest.raises(OperationFailure, match="no password is asked here"):
            await client.app.things.find_one()


async def test_a_certificate_for_another_database_of_the_cluster(door: Door) -> None:
    user = door.world.cluster.user(destination=Destination("db", "elsewhere", "mongodb", "alice", ""))
    async with door.client(user) as client:
        with pytest.raises(OperationFailure, match='certificate is for database "elsewhere"'):
            await client.app.things.find_one()


async def test_behind_a_load_balancer(door: Door) -> None:
    """loadBalanced=true: drivers take a connection for what it is, and ask nobody for other servers."""
    user = door.world.cluster.user(destination=destination())
    async with door.client(user, directConnection=False, loadBalanced=True) as client:
        await client.app.things.insert_one({"n": 2})
        assert await client.app.things.find_one({"n": 2})


async def test_without_direct_connection(door: Door) -> None:
    user = door.world.cluster.user(destination=destination())
    async with door.client(user, directConnection=False) as client:
        assert await client.app.things.count_documents({}) >= 0


async def test_writes_that_nobody_waits_for(door: Door) -> None:
    user = door.world.cluster.user(destination=destination(), databases=("app",))
    async with door.client(user, w=0) as client:
        await client.app.quiet.insert_one({"n": 1})
        await client.other.quiet.insert_one({"n": 1})  # which nobody answers
        assert (await client.app.command("ping"))["ok"] == 1.0
    assert [one["statement"] for one in door.world.events("db.query.deny")] == ["insert other.quiet"]
    assert "insert app.quiet" in [one["statement"] for one in door.world.events("db.query")]


async def test_pymongo_without_asyncio(door: Door) -> None:
    """In a thread of its own, while the proxy runs in this one's loop."""
    options = door.options(door.world.cluster.user(destination=destination()))

    def talk() -> int:
        with MongoClient(f"orders.db.{PUBLIC}", door.port, directConnection=True, **options) as client:
            client.app.sync.drop()
            client.app.sync.insert_many([{"n": n} for n in range(100)])
            return client.app.sync.count_documents({"n": {"$lt": 50}})

    assert await asyncio.to_thread(talk) == 50


async def test_a_server_that_wants_a_password(cluster: Cluster, tmp_path: Path) -> None:
    server = FerretServer(*cluster.database_server("localhost", "127.0.0.1"), password="correct horse")
    server.start()
    try:
        secret = tmp_path / "passwords"
        secret.write_text("alice:correct horse\nbob:wrong\n")
        secret.chmod(0o600)
        how = {"uri": f"localhost:{server.port}", "password_file": str(secret)}
        async with opened(cluster, tmp_path, **how) as door:
            async with door.client(cluster.user(destination=destination())) as client:
                await client.app.things.insert_one({"n": 1})
            for name, why in (("bob", "does not take its agent's password"), ("eve", "has no password")):
                user = cluster.user(name, users=(name,), destination=destination(user=name))
                async with door.client(user) as client:
                    with pytest.raises(OperationFailure, match=why) as refused:
                        await client.app.things.find_one()
                    assert "wrong" not in str(refused.value)
        user = cluster.user(destination=destination())
        async with opened(cluster, tmp_path, uri=how["uri"]) as door, door.client(user) as client:
            with pytest.raises(OperationFailure):
                await client.app.things.find_one()
    finally:
        server.stop()


async def test_a_server_that_is_not_there(cluster: Cluster, server: FerretServer, tmp_path: Path) -> None:
    user = cluster.user(destination=destination())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for uri in (f"localhost:{port}", f"127.0.0.2:{server.port}"):
        async with opened(cluster, tmp_path, uri=uri) as door, door.client(user) as client:
            with pytest.raises(OperationFailure, match='database "orders" cannot be reached from its agent'):
                await client.app.things.insert_one({})
