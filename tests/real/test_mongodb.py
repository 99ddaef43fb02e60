"""MongoDB's clients through the one port to a real server: straight, and by local proxies."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure

from ..conftest import fetched  # noqa: TID252 # tests are no package
from .clients import Client, distribution
from .cluster import Cluster, Person, free_port, wait_until
from .ferretdb import FerretServer
from .test_postgres_local import proxy_db

PROGRAMS = Path(__file__).parent / "programs/mongo"
PYMONGO = distribution("pymongo")
STRAIGHT = (
    "straight to the port: `mongodb://mongo.db.localhost:PORT/?tls=true&tlsCAFile=certs.pem&"
    "tlsCertificateKeyFile=mongo.pem`"
)
LENT = "`tsh proxy db --tunnel mongo`, and the connection string that it prints"

OWN = "`tsh proxy db mongo`, and the connection string that it prints: the client's own TLS inside ours"
LEGACY = "to `mongo_listen_addr`: `mongodb://localhost:PORT/?tls=true&…`, as straight to the port"
SOCKET = "`tsh proxy db --unix PATH mongo`, and the connection string that it prints"


def version(package: str) -> Callable[[], str]:
    """The version of an npm package."""

    def told() -> str:
        found: str = json.loads(fetched(f"mongo/node_modules/{package}/package.json").read_text())["version"]
        return found

    return told


MONGOSH, NODE = version("mongosh"), version("mongodb")


@pytest.fixture(scope="module")
def mongo(cluster: Cluster, alice: Person, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FerretServer]:
    """A real server whose certificate `tctl auth sign --format=db` made, and an agent beside it."""
    folder = tmp_path_factory.mktemp("certificates")
    cluster.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={folder}/server")
    server = FerretServer.from_files(folder / "server")
    server.start()
    agent = cluster.agent(
        "mongohost",
        "db",
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: mongo, protocol: mongodb, uri: 'localhost:{server.port}'}}\n",
    )
    agent.start()
    wait_until(lambda: "mongo " in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    alice.tsh("db", "login", "mongo", "--db-user=alice")
    yield server
    agent.stop()
    server.stop()


@pytest.fixture
def straight(cluster: Cluster, alice: Person, mongo: FerretServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection string of somebody with no tsh running; names are found as by a DNS entry."""
    ask = socket.getaddrinfo

    def answer(host: str | None, *words: Any, **more: Any) -> Any:
        return ask("127.0.0.1" if host == "mongo.db.localhost" else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    keys = alice.home / ".tsh/keys/localhost"
    return (
        f"mongodb://mongo.db.localhost:{cluster.port}/app?directConnection=true&tls=true&tlsCAFile={keys}/certs.pem"
        f"&tlsCertificateKeyFile={keys}/alice-db/example.com/mongo.pem"
    )


def talk(uri: str) -> None:
    """What is expected of PyMongo, whichever way it has come."""
    with MongoClient(uri, serverSelectionTimeoutMS=15_000) as client:
        client.app.people.drop()
        client.app.people.insert_many([{"n": n, "pad": "x" * 200} for n in range(2000)])
        assert len(list(client.app.people.find({"n": {"$gte": 1000}}, batch_size=300))) == 1000
        assert "app" in client.list_database_names()
        with pytest.raises(OperationFailure, match='database "elsewhere" on "mongo" denied') as refused:
            client.elsewhere.people.find_one()
        assert refused.value.code == 13


@pytest.mark.client(Client("PyMongo", "mongodb", STRAIGHT, PYMONGO))
def test_pymongo_straight_to_the_port(straight: str) -> None:
    talk(straight)


@pytest.mark.client(Client("PyMongo (asyncio)", "mongodb", STRAIGHT, PYMONGO))
async def test_pymongo_with_asyncio_straight_to_the_port(straight: str) -> None:
    async with AsyncMongoClient(straight, serverSelectionTimeoutMS=15_000) as client:
        await client.app.later.drop()
        await asyncio.gather(*(client.app.later.insert_one({"n": n}) for n in range(50)))
        assert await client.app.later.count_documents({}) == 50


@pytest.mark.client(Client("PyMongo", "mongodb", LENT, PYMONGO))
def test_pymongo_by_the_string_that_is_printed(alice: Person, mongo: FerretServer) -> None:
    with proxy_db(alice, "--tunnel", "--listen", f"127.0.0.1:{free_port()}", "mongo") as proxy:
        talk(proxy.form("URI"))


@pytest.mark.parametrize("way", ["--tunnel", "--unix", "own"])
def test_the_string_of_a_login_that_names_no_user_has_a_place_for_one(
    cluster: Cluster, mongo: FerretServer, tmp_path: Path, way: str
) -> None:
    person = cluster.person("alice")
    cluster.login(person)
    where = ["--listen", f"127.0.0.1:{free_port()}", *([way] if way == "--tunnel" else [])]
    with proxy_db(person, *(["--unix", tmp_path / "mongo.sock"] if way == "--unix" else where), "mongo") as proxy:
        talk(proxy.form("URI").replace("USER@", "alice@"))
        with (
            MongoClient(proxy.form("URI").replace("USER@", "mallory@"), serverSelectionTimeoutMS=15_000) as client,
            pytest.raises(OperationFailure, match='as database user "mallory" denied'),
        ):
            client.app.people.find_one()


@pytest.mark.client(Client("PyMongo", "mongodb", SOCKET, PYMONGO))
def test_pymongo_over_a_unix_socket(alice: Person, mongo: FerretServer, tmp_path: Path) -> None:
    with proxy_db(alice, "--unix", tmp_path / "mongo.sock", "mongo") as proxy:
        talk(proxy.form("URI"))


@pytest.mark.client(Client("PyMongo", "mongodb", OWN, PYMONGO))
def test_pymongo_with_its_own_tls_inside_ours(alice: Person, mongo: FerretServer) -> None:
    with proxy_db(alice, "mongo") as proxy:
        talk(proxy.form("URI"))


@pytest.mark.client(Client("PyMongo", "mongodb", "`tsh proxy db --cert FILE`: its own TLS inside ours", PYMONGO))
def test_pymongo_by_the_file_that_was_named(alice: Person, mongo: FerretServer, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_bytes((alice.home / ".tsh/keys/localhost/alice-db/example.com/mongo.pem").read_bytes())
    with proxy_db(alice, "--cert", file) as proxy:
        uri = proxy.form("URI")
        assert uri.endswith("&tlsCertificateKeyFile=" + quote(str(file), safe=""))
        talk(uri)


def test_what_was_run_is_in_the_audit_log(cluster: Cluster, straight: str) -> None:
    talk(straight)
    events = json.loads(cluster.tctl("events", "ls", "--format=json", "--type=db.query").stdout)
    ran = [one for one in events if one.get("protocol") == "mongodb"]
    assert {"insert app.people", "find app.people", "drop app.people"} <= {one["statement"] for one in ran}
    assert {one["user"] for one in ran} == {"alice@example.com"}


@pytest.mark.client(Client("PyMongo", "mongodb", LEGACY, PYMONGO))
def test_pymongo_at_the_port_of_its_own(cluster: Cluster, straight: str) -> None:
    """The name is the proxy's own; the certificate says which database."""
    talk(straight.replace(f"mongo.db.localhost:{cluster.port}", f"localhost:{cluster.mongo_port}"))


def test_a_certificate_that_names_no_database_user(alice: Person, straight: str) -> None:
    """That of `tsh login` itself: the hello of a driver's monitor says no more."""
    pem = alice.home / ".tsh/keys/localhost/alice-db/example.com/mongo.pem"
    key = alice.home / ".tsh/keys/localhost/alice"
    plain = alice.home / "plain.pem"
    plain.write_bytes((alice.home / ".tsh/keys/localhost/alice-x509.pem").read_bytes() + key.read_bytes())
    with (
        MongoClient(straight.replace(str(pem), str(plain)), serverSelectionTimeoutMS=15_000) as client,
        pytest.raises(OperationFailure, match="names a database user: tsh db login mongo --db-user=USER"),
    ):
        client.app.people.find_one()


# --- of other languages

SCRIPT = """
db.shell.drop();
db.shell.insertMany([...Array(500).keys()].map((n) => ({ n })));
let denied = "";
try { db.getSiblingDB("elsewhere").shell.findOne() } catch (error) { denied = error.codeName }
print(JSON.stringify({ count: db.shell.countDocuments({ n: { $gte: 100 } }), name: db.getName(), denied }));
"""
SHELL_SAYS = {"count": 400, "name": "app", "denied": "Unauthorized"}


@pytest.fixture
def shell(alice: Person, mongo: FerretServer, need: Callable[[str], str]) -> Callable[..., str]:
    """Runs mongosh with a connection string."""
    need("node")
    program = fetched("mongo/node_modules/.bin/mongosh")

    def run(uri: str, *words: str) -> str:
        resolved = f"--require={PROGRAMS}/names.cjs"
        return alice.run(program, uri, "--quiet", *words, NODE_OPTIONS=resolved, seconds=90).stdout

    return run


@pytest.mark.client(Client("mongosh", "mongodb", STRAIGHT, MONGOSH))
def test_mongosh_straight_to_the_port(straight: str, shell: Callable[..., str]) -> None:
    assert json.loads(shell(straight, "--eval", SCRIPT)) == SHELL_SAYS


@pytest.mark.client(Client("mongosh", "mongodb", "`tsh db connect mongo`", MONGOSH))
def test_mongosh_by_tsh_db_connect(alice: Person, mongo: FerretServer, need: Callable[[str], str]) -> None:
    need("node")
    path = f"{fetched('mongo/node_modules/.bin')}:{alice.env()['PATH']}"
    words = ("db", "connect", "--db-user=alice", "--db-name=app", "mongo", "--", "--quiet", "--eval", SCRIPT)
    done = alice.tsh(*words, PATH=path, seconds=90)
    assert json.loads(done.stdout) == SHELL_SAYS
    failed = alice.tsh(*words[:-1], "quit(7)", PATH=path, code=7, seconds=90)
    assert failed.stderr == ""


@pytest.mark.client(Client("mongosh", "mongodb", "`tsh db connect mongo`", MONGOSH))
def test_mongosh_by_tsh_db_connect_with_no_name_of_a_database(
    alice: Person, mongo: FerretServer, need: Callable[[str], str]
) -> None:
    need("node")
    path = f"{fetched('mongo/node_modules/.bin')}:{alice.env()['PATH']}"
    script = 'print(JSON.stringify([db.getName(), db.getMongo()._uri, db.adminCommand("listDatabases").ok]))'
    done = alice.tsh("db", "connect", "mongo", "--", "--quiet", "--eval", script, PATH=path, seconds=90)
    name, uri, reached = json.loads(done.stdout)
    assert (name, reached) == ("test", 1), "what mongosh uses where nothing is named"
    assert re.match(r"mongodb://%2F.*tsh-db-.*%2Fmongodb\.sock/", uri), "not the machine's own 27017"


@pytest.mark.client(Client("MongoDB's Node driver (`mongodb`)", "mongodb", STRAIGHT, NODE))
def test_the_node_driver_straight_to_the_port(alice: Person, straight: str, need: Callable[[str], str]) -> None:
    _node(alice, need("node"), straight)


@pytest.mark.client(Client("MongoDB's Node driver (`mongodb`)", "mongodb", LENT, NODE))
def test_the_node_driver_by_a_local_proxy(alice: Person, mongo: FerretServer, need: Callable[[str], str]) -> None:
    with proxy_db(alice, "--tunnel", "--listen", f"127.0.0.1:{free_port()}", "mongo") as proxy:
        _node(alice, need("node"), proxy.form("URI"))


def _node(alice: Person, node: str, uri: str) -> None:
    modules = str(fetched("mongo/node_modules"))
    resolved = f"--require={PROGRAMS}/names.cjs"
    done = alice.run(node, PROGRAMS / "driver.cjs", uri, NODE_PATH=modules, NODE_OPTIONS=resolved, seconds=60)
    said = json.loads(done.stdout)
    assert 'database "elsewhere" on "mongo" denied' in said.pop("message")
    assert said == {"rows": 1000, "one": 1, "denied": "Unauthorized"}
