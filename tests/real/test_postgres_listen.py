"""LISTEN and NOTIFY: a session that says nothing for a long time still hears."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psycopg
import pytest

from .cluster import Cluster, Person
from .postgres import PostgresServer
from .test_postgres_local import proxy_db

LIFE = 900  # seconds that a certificate of the soak is good: several times what keep-alives take to find a peer dead
SILENT = "an idle session hears nothing"
ROLE = f"""\
kind: role
version: v1
metadata: {{name: brief}}
spec:
  allow: {{db_labels: {{'*': '*'}}, db_users: [alice, reader], db_names: [app, postgres]}}
  options: {{max_session_ttl: {LIFE}s}}
"""


def heard(session: psycopg.Connection, seconds: float = 15) -> list[str]:
    """What one notification of this session says; nothing if none comes in time."""
    return [each.payload for each in session.notifies(timeout=seconds, stop_after=1)]


def test_a_listening_session_hears_the_others_and_the_server(tunnel: int, server: PostgresServer) -> None:
    words = f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable"
    with psycopg.connect(words, autocommit=True) as listening, psycopg.connect(words, autocommit=True) as speaking:
        listening.execute("listen orders")
        for number in range(3):
            speaking.execute("select pg_notify('orders', %s)", (f"order {number}",))
            assert heard(listening) == [f"order {number}"], SILENT
        speaking.execute("select pg_notify('orders', repeat('x', 7000))")
        assert heard(listening) == ["x" * 7000], "the longest that PostgreSQL sends is 7999 bytes"
        listening.execute("unlisten orders")
        speaking.execute("notify orders, 'nobody hears this'")
        listening.execute("listen others")
        speaking.execute("notify others, 'the next'")
        assert heard(listening) == ["the next"]


@pytest.mark.soak
def test_a_session_listens_through_a_renewal_until_its_own_certificate_ends(
    cluster: Cluster, server: PostgresServer, dba: Person, tmp_path: Path
) -> None:
    """Nothing flows for minutes, the local proxy's certificate is renewed, and the session hears to its last moment."""
    (tmp_path / "role.yaml").write_text(ROLE)
    cluster.tctl("create", tmp_path / "role.yaml")
    cluster.add_user("lena", "--roles=brief")
    lena = cluster.person("lena")
    cluster.login(lena, "--no-ssh-setup")
    began = time.monotonic()
    # whom `tsh login` does not renew it for: the local proxy does
    with proxy_db(lena, "--tunnel", "--db-user=alice", "--db-name=app", "pg") as proxy:
        uri = proxy.form("URI")
        with psycopg.connect(uri, autocommit=True) as listening:
            listening.execute("listen orders")
            assert heard(listening, LIFE / 3) == []
            cluster.login(lena, "--no-ssh-setup")
            assert heard(listening, began + LIFE - 30 - time.monotonic()) == []
            with psycopg.connect(uri, autocommit=True) as speaking:
                speaking.execute("notify orders, 'after a long silence'")
            assert heard(listening) == ["after a long silence"], SILENT
            with pytest.raises(psycopg.OperationalError):
                heard(listening, 60)
        assert time.monotonic() - began > LIFE - 5
        with psycopg.connect(uri) as after:
            assert after.execute("select current_user").fetchone() == ("alice",), "by the renewed certificate"
        assert [line for line in proxy.err if "not renewed" in line] == []
    rows = json.loads(cluster.tctl("events", "ls", "--format=json", "--limit=1000").stdout)
    ends = [row["reason"] for row in rows if row["type"] == "db.session.end" and row["user"] == "lena@example.com"]
    assert [reason for reason in ends if reason.endswith("expired")] == ["certificate expired"], ends
