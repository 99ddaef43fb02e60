"""A protocol of somebody else's package in a whole cluster: named by the daemon's configuration and by the user."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..others import install  # noqa: TID252 # tests are no package
from .cluster import Cluster, free_port, wait_until
from .test_postgres_local import proxy_db


@pytest.fixture
def greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Auth, proxy and agent in one daemon, with a database that speaks `greet`."""
    install(tmp_path, {"greet": "greet_for_monoport:PROTOCOL"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Cluster(tmp_path)
    text = made.config.read_text().replace("  nodename: front\n", "  nodename: front\n  protocols: greet\n")
    database = "db_service:\n  enabled: yes\n  databases: [{name: hello, protocol: greet, uri: localhost}]\n"
    made.config.write_text(text + database)
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", "--db-users=alice")
        yield made
    finally:
        made.stop()


def test_a_session_from_end_to_end(greeting: Cluster, tmp_path: Path) -> None:
    rows = {row["rule"]: row for row in json.loads(greeting.tctl("route", "ls", "--format=json").stdout)}
    assert "refused" not in rows["greet"]["goes_to"]
    alice = greeting.person("alice")
    alice.environment["PYTHONPATH"] = str(tmp_path)
    greeting.login(alice, "--no-ssh-setup")
    wait_until(lambda: "hello" in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    alice.tsh("db", "login", "hello", "--db-user=alice")
    unknown = alice.tsh("proxy", "db", "--tunnel", "hello", code=1)
    assert "does not know the protocol 'greet'" in unknown.stderr
    alice.environment["TSH_PROTOCOLS"] = "greet"
    port = free_port()
    with proxy_db(alice, "--tunnel", "-p", str(port), "hello") as local:
        assert local.form("nc") == f"nc 127.0.0.1 {port}"
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"good morning\n")
            with client.makefile() as answer:
                assert answer.readline() == "alice said good morning, and has a certificate: True\n"
