"""An agent that may not dial back: what its databases say, bulk above all, goes by channels of its tunnel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256

import psycopg
import pytest

from .cluster import Cluster, Person, wait_until
from .postgres import PostgresServer
from .test_postgres_local import LocalProxy, proxy_db

MEGABYTES = 24  # many times what may wait in a channel, and what one read of any stream on the way holds
NAME = "inband"


@pytest.fixture(scope="module")
def inband(cluster: Cluster, alice: Person, server: PostgresServer) -> Iterator[None]:
    """The database `inband`, whose agent has `dial_back: no`."""
    services = (
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: {NAME}, protocol: postgres, uri: 'localhost:{server.port}'}}\n"
    )
    agent = cluster.agent(NAME, "db", services, settings="  dial_back: no\n")
    agent.start()
    wait_until(lambda: NAME in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    yield
    agent.stop()


@pytest.fixture(params=["sealed", "in the client's own TLS"])
def proxy(request: pytest.FixtureRequest, alice: Person, inband: None) -> Iterator[LocalProxy]:
    """`tsh proxy db`: sealed between tsh and the agent, or with the client's own TLS to the proxy."""
    alice.tsh("db", "login", NAME, "--db-user=alice", "--db-name=app")
    with proxy_db(alice, *(["--tunnel"] if request.param == "sealed" else []), NAME) as running:
        yield running


def chunks() -> Iterator[bytes]:
    """Rows of many lengths, a megabyte at a time, none like the one before."""
    for number in range(MEGABYTES):
        rows = b"".join(b"%d\t%s\n" % (number, b"%d." % row * (row % 700)) for row in range(1, 1200))
        yield rows[: rows.rindex(b"\n", 0, 1_000_000) + 1]


def dialled_back(cluster: Cluster) -> list[str]:
    """The connections that the agent of `inband` has dialled."""
    (host,) = [one["host_id"] for one in tctl(cluster, "db") if one["name"] == NAME]
    users = [one["user"] for one in tctl(cluster, "conns") if one["route"].startswith("dialback")]
    return [user for user in users if user.startswith(host)]


def tctl(cluster: Cluster, what: str) -> list[dict[str, str]]:
    """The rows of one of tctl's lists."""
    rows: list[dict[str, str]] = json.loads(cluster.tctl(what, "ls", "--format=json").stdout)
    return rows


def test_bulk_both_ways_whole(proxy: LocalProxy, cluster: Cluster) -> None:
    sent, back, rows = sha256(), sha256(), 0
    with psycopg.connect(proxy.form("URI")) as session, session.cursor() as cursor:
        cursor.execute("create temporary table bulk (number int, pad text)")
        with cursor.copy("copy bulk from stdin") as copy:
            for chunk in chunks():
                copy.write(chunk)
                sent.update(chunk)
                rows += chunk.count(b"\n")
        assert session.execute("select count(*) from bulk").fetchone() == (rows,)
        with cursor.copy("copy bulk to stdout") as copy:
            for piece in copy:
                back.update(piece)
        assert back.digest() == sent.digest()
        assert not dialled_back(cluster)
    assert proxy.err == []


def test_the_tunnel_goes_on_beside_it(proxy: LocalProxy) -> None:
    """Another session of the same tunnel is answered while one is in the middle of its upload."""
    with psycopg.connect(proxy.form("URI")) as busy, busy.cursor() as cursor:
        cursor.execute("create temporary table bulk (number int, pad text)")
        with cursor.copy("copy bulk from stdin") as copy:
            for number, chunk in enumerate(chunks()):
                copy.write(chunk)
                if number == MEGABYTES // 2:
                    with psycopg.connect(proxy.form("URI")) as other:
                        assert other.execute("select 1").fetchone() == (1,)
    assert proxy.err == []
