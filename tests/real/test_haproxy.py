"""The real HAProxy in front of the one port: everybody sees the client's address, not the balancer's.

Clients come from 127.0.0.2: tsh cannot be told so, therefore its connections first pass an HAProxy that only forwards
them from there. The balancer itself connects from 127.0.0.3.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .cluster import BALANCER, BIN, Cluster, Person, free_port, wait_until

CLIENT = "127.0.0.2"
CONFIG = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s

listen client
  bind 127.0.0.1:{entry}
  source {client}
  server balancer 127.0.0.1:{port}

listen balancer
  bind 127.0.0.1:{port}
  source {balancer}
  server monoport 127.0.0.1:{monoport} {words}
"""


@dataclass
class Balancer:
    """One running HAProxy. entry: connections to it come from CLIENT; port: from wherever they come."""

    entry: int
    port: int


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(
    params=["send-proxy", "send-proxy-v2 proxy-v2-options crc32c check check-send-proxy inter 100ms"],
    ids=["v1", "v2"],
)
def balancer(cluster: Cluster, folder: Path, need, request: pytest.FixtureRequest) -> Iterator[Balancer]:
    found = Balancer(free_port(), free_port())
    config = folder / "haproxy.cfg"
    ports = {"entry": found.entry, "port": found.port, "monoport": cluster.port}
    config.write_text(CONFIG.format(**ports, client=CLIENT, balancer=BALANCER, words=request.param))
    with subprocess.Popen([need("haproxy"), "-db", "-f", config], stderr=subprocess.PIPE) as haproxy:
        try:
            wait_until(lambda: listens(found.entry) and listens(found.port), 10, "HAProxy listens")
            yield found
        finally:
            haproxy.terminate()


@pytest.fixture
def carol(cluster: Cluster, balancer: Balancer) -> Person:
    """Alice at another machine, which reaches the cluster through the balancer."""
    person = cluster.person("alice")
    cluster.login(person, "--no-ssh-setup", port=balancer.entry)
    return person


def rows(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cluster.tctl(*words, "--format=json").stdout)
    return found


def test_conns_ls_and_the_audit_log_show_the_client(cluster: Cluster, carol: Person, login: str) -> None:
    # the newest login is the one that came through this balancer
    assert rows(cluster, "events", "ls", "--type=user.login", "--limit=1")[0]["source"] == CLIENT
    words = [BIN / "tsh", "ssh", f"{login}@node", "echo $SSH_CONNECTION; cat"]
    with subprocess.Popen(words, env=carol.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline().startswith(f"{CLIENT} ".encode()), "the node tells the session, too"
        (live,) = [row for row in rows(cluster, "conns", "ls") if row["source"].startswith(f"{CLIENT}:")]
        assert (live["user"], live["state"]) == ("alice@example.com", "ssh")
        session.stdin.close()
        assert session.wait(20) == 0

    def started() -> list[dict[str, Any]]:
        events = rows(cluster, "events", "ls", "--type=session.*")
        return [event for event in events if event.get("connection") == live["id"]]

    events = wait_until(started, 10, "the session's events")
    assert {event["source"].rpartition(":")[0] for event in events} == {CLIENT}
    assert not [row for row in rows(cluster, "conns", "ls") if row["source"].startswith(BALANCER) and row["reason"]], (
        "health checks are no refusals"
    )


def test_a_header_from_elsewhere_or_behind_the_balancers_own_is_refused(cluster: Cluster, balancer: Balancer) -> None:
    forged = b"PROXY TCP4 203.0.113.9 198.51.100.7 1 443\r\n"
    for port, source in ((cluster.port, "127.0.0.4"), (balancer.port, "127.0.0.5")):
        with socket.create_connection(("127.0.0.1", port), 10, (source, 0)) as client:
            client.sendall(forged)
            assert client.recv(100) == b""
        last = [row for row in rows(cluster, "conns", "ls") if row["source"].startswith(f"{source}:")][-1]
        assert last["reason"].startswith("not_enabled: a PROXY header from a source that may send none, or a second")
    assert not [row for row in rows(cluster, "conns", "ls") if row["source"].startswith("203.0.113.9")]
