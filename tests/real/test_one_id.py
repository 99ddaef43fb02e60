"""One connection id from the local proxy to the agent: in every line of every log, and in every audit event."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from .cluster import BIN, Cluster, Daemon, Person, free_port, wait_until
from .postgres import PostgresServer

# What a host logs of itself, whoever connects meanwhile.
OF_HOSTS = {"tunnel open", "tunnel lost", "tunnel closed by the proxy", "heartbeat failed", "database health"}
SOURCE = re.compile(r"\[from (127\.0\.0\.1:\d+)\]")


def talkative(daemon: Daemon) -> Daemon:
    """Have it log everything, as JSON."""
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace("teleport:\n", "teleport:\n  log: {severity: debug, format: json}\n", 1))
    return daemon


@dataclass
class Logs:
    """What the daemons log from now on."""

    daemons: dict[str, Daemon]

    def __post_init__(self) -> None:
        self.before = {name: len(one.text().splitlines()) for name, one in self.daemons.items()}

    def lines(self, name: str) -> list[dict[str, Any]]:
        lines = self.daemons[name].text().splitlines()[self.before[name] :]
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, login: str, need) -> Iterator[tuple[Cluster, dict[str, Daemon]]]:
    need("postgres")
    made = Cluster(tmp_path_factory.mktemp("ids"), "ids.example.com")
    server: PostgresServer | None = None
    try:
        talkative(made.front).start()
        made.add_user("alice", "--roles=access", f"--logins={login}", "--db-users=alice", "--db-names=postgres")
        made.tctl("auth", "sign", "--format=db", "--host=localhost", f"--out={made.root}/server")
        server = PostgresServer.from_files(made.root / "server")
        server.start()
        server.sql("create role alice login;")
        node = talkative(made.agent("node", "node", "ssh_service: {enabled: yes}\n"))
        where = f"[{{name: pg, protocol: postgres, uri: 'localhost:{server.port}'}}]"
        host = talkative(made.agent("dbhost", "db", f"db_service: {{enabled: yes, databases: {where}}}\n"))
        for daemon in (node, host):
            daemon.start()
        yield made, {"front": made.front, "node": node, "dbhost": host}
    finally:
        made.stop()
        if server is not None:
            server.stop()


@pytest.fixture(scope="module")
def user(own: tuple[Cluster, dict[str, Daemon]]) -> Person:
    cluster, _ = own
    person = cluster.person("alice")
    cluster.login(person, "--no-ssh-setup")
    wait_until(lambda: "node" in person.tsh("ls").stdout and "pg" in person.tsh("db", "ls").stdout, 15, "both")
    return person


def test_a_query_and_a_shell_have_one_id_each_wherever_they_are_mentioned(
    own: tuple[Cluster, dict[str, Daemon]], user: Person, login: str
) -> None:
    cluster, daemons = own
    user.tsh("db", "login", "pg", "--db-user=alice", "--db-name=postgres")
    logs = Logs(daemons)
    source = queried(user)
    assert user.tsh("ssh", f"{login}@node", "echo hello").stdout == "hello\n"
    fronts = wait_until(lambda: ended(logs.lines("front")), 15, "both connections in the front's log")
    query, shell = fronts["database"], fronts["ssh"]
    assert query["source"] == source, "what the local proxy says of it leads to the front's line"
    events = wait_until(lambda: audited(cluster), 15, "both sessions in the audit log")

    ids = {"dbhost": query["connection"], "node": shell["connection"]}
    for name, connection in ids.items():
        lines = [line for line in logs.lines(name) if line["event"] not in OF_HOSTS]
        assert lines, f"{name} logs something of its session"
        assert {line.get("connection") for line in lines} == {connection}, lines
    whose = {query["source"]: query["connection"], shell["source"]: shell["connection"]}
    for name in daemons:
        for line in logs.lines(name):
            if line.get("source") in whose:
                assert line["connection"] == whose[line["source"]], line
            assert line.get("connection") or "alice" not in str(line), line
    kinds = {"db": query["connection"], "session": shell["connection"]}
    for event in events:
        if event["type"].partition(".")[0] in kinds:
            assert event["connection"] == kinds[event["type"].partition(".")[0]], event
    (certified,) = [event for event in events if event["type"] == "certificate.database_client"]
    assert certified["connection"] == query["connection"]


def queried(user: Person) -> str:
    """Send a query through `tsh proxy db`; the address from which that says that it reached the front."""
    port = free_port()
    words = [BIN / "tsh", "proxy", "db", "-p", str(port), "--tunnel", "--debug", "pg"]
    with subprocess.Popen(words, env=user.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        assert str(port) in proxy.stdout.readline()
        with psycopg.connect(f"host=127.0.0.1 port={port} user=alice dbname=postgres sslmode=disable") as connection:
            assert connection.execute("select 'the-query'").fetchone() == ("the-query",)
        proxy.send_signal(signal.SIGINT)
        _, said = proxy.communicate(timeout=10)
    found = SOURCE.search(said)
    assert found, said
    return found[1]


def ended(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """The front's line of alice's connection of each kind, once both are there."""
    found = {line["kind"]: line for line in lines if line["event"] == "connection"}
    return found if {"database", "ssh"} <= found.keys() else None


def audited(cluster: Cluster) -> list[dict[str, Any]] | None:
    """The audit log, once both sessions have ended there."""
    events = json.loads(cluster.tctl("events", "ls", "--format=json").stdout)
    types = {event["type"] for event in events}
    return events if {"db.session.end", "db.query", "session.end"} <= types else None
