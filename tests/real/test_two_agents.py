"""Two agents for one database, each beside a real server of its own: one server is down, and nobody notices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from .cluster import Cluster, Person, wait_until
from .postgres import PostgresServer
from .test_postgres_local import proxy_db

AGENTS = 2


@pytest.fixture
def twins(cluster: Cluster, tmp_path: Path, need: Callable[[str], str]) -> Iterator[list[PostgresServer]]:
    """The servers behind the two agents of the database `twin`."""
    need("postgres")
    servers: list[PostgresServer] = []
    token = cluster.token("db")  # one for both: a database belongs to the hosts that joined with the same token
    try:
        for number in range(AGENTS):
            cluster.tctl("auth", "sign", "--format=db", "--host=localhost", f"--out={tmp_path}/{number}")
            server = PostgresServer.from_files(tmp_path / str(number))
            servers.append(server)
            server.start()
            server.sql("create role alice login")
            databases = f"    - {{name: twin, protocol: postgres, uri: 'localhost:{server.port}'}}\n"
            services = f"db_service:\n  enabled: yes\n  databases:\n{databases}"
            cluster.agent(f"twin{number}", "db", services, token=token).start()
        yield servers
    finally:
        for server in servers:
            server.stop()


def up(cluster: Cluster) -> bool:
    rows = json.loads(cluster.tctl("db", "ls", "--format=json").stdout)
    return [row["state"] for row in rows if row["name"] == "twin"] == ["up"] * AGENTS


def test_the_next_agent_is_tried_at_once(cluster: Cluster, alice: Person, twins: list[PostgresServer]) -> None:
    """Whichever of them the proxy asks first, in one of the two rounds its server has just gone."""
    wait_until(lambda: "twin" in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    with proxy_db(alice, "--tunnel", "--db-user=alice", "--db-name=postgres", "twin") as proxy:
        uri = proxy.form("URI")
        for down, left in (twins, reversed(twins)):
            wait_until(lambda: up(cluster), 40, "both servers up in tctl db ls")
            down.stop(remove=False)
            try:
                for _ in range(3):
                    with psycopg.connect(uri) as session:
                        assert session.execute("show port").fetchone() == (str(left.port),)
            finally:
                down.start()
    assert proxy.err == []
