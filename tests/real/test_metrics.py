"""Metrics and health of real daemons: ready when they are, scraped while they work, and naming nobody."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monoport.audit.metrics import SETS, TABLE

from .cluster import BIN, Cluster, Daemon, Person, free_port, wait_until

LABELS = {one.shown: set(one.labels) for one in TABLE.values()}
SCRAPES = 20  # while sessions run


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body; 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


class Scrape:
    """What one scrape of /metrics says, read as Prometheus reads it."""

    def __init__(self, port: int) -> None:
        status, self.text = ask(port, "/metrics")
        assert status == 200, self.text
        self.samples = [one for family in text_string_to_metric_families(self.text) for one in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(
            one.value for one in self.samples if one.name == f"monoport_{name}" and labels.items() <= one.labels.items()
        )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, login: str) -> Iterator[tuple[Cluster, int, Daemon, int]]:
    """A cluster and a node, each with its diagnostics; the node is not started yet."""
    made = Cluster(tmp_path_factory.mktemp("metrics"), "metrics.example.com")
    front, node = free_port(), free_port()
    diag(made.config, front)
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", f"--logins={login},no-account")
        agent = made.agent("node", "node", "ssh_service:\n  enabled: yes\n")
        diag(agent.config, node)
        yield made, front, agent, node
    finally:
        made.stop()


def diag(config: Path, port: int) -> None:
    """Name the address of diagnostics in a configuration."""
    config.write_text(config.read_text().replace("teleport:\n", f"teleport:\n  diag_addr: 127.0.0.1:{port}\n", 1))


def test_a_node_is_alive_at_once_and_ready_when_its_proxy_is_there(
    watched: tuple[Cluster, int, Daemon, int],
) -> None:
    cluster, front, node, port = watched
    assert ask(front, "/readyz")[0] == 200
    if node.process is None:
        node.start()
    assert ask(port, "/healthz")[0] == 200
    assert json.loads(ask(port, "/readyz")[1]) == {"ready": True, "services": {"node": "ready"}}

    cluster.front.kill()
    wait_until(lambda: ask(port, "/readyz")[0] == 503, 10, "the node says that its tunnel is gone")
    assert json.loads(ask(port, "/readyz")[1])["services"] == {"node": "it has no tunnel to the proxy"}
    assert ask(port, "/healthz")[0] == 200, "it needs no restart"
    assert Scrape(port).value("agent_connected", role="node") == 0
    assert ask(front, "/healthz")[0] == 0

    cluster.front.start()
    assert ask(front, "/readyz") == (200, '{"ready":true,"services":{"auth":"ready","proxy":"ready"}}')
    wait_until(lambda: ask(port, "/readyz")[0] == 200, 15, "the node is back")


@pytest.fixture
def user(watched: tuple[Cluster, int, Daemon, int]) -> Person:
    cluster, _, node, _ = watched
    if node.process is None:
        node.start()
    person = cluster.person("alice")
    cluster.login(person, "--no-ssh-setup")
    wait_until(lambda: "node" in person.tsh("ls").stdout, 15, "the node in tsh ls")
    return person


def test_scrapes_while_sessions_run(watched: tuple[Cluster, int, Daemon, int], user: Person, login: str) -> None:
    _, front, _, port = watched
    words = [BIN / "tsh", "ssh", f"{login}@node", "echo started; head -c 20000000 /dev/zero; read line"]
    with subprocess.Popen(words, env=user.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == b"started\n"
        with ThreadPoolExecutor(8) as pool:
            began = time.monotonic()
            taken = list(pool.map(lambda _: Scrape(front), range(SCRAPES)))
            assert time.monotonic() - began < 10
        assert len(session.stdout.read(20_000_000)) == 20_000_000
        wait_until(lambda: Scrape(front).value("relayed_bytes_total", direction="out") > 20_000_000, 5, "bytes counted")
        at_node = Scrape(port)
        assert at_node.value("ssh_connections_open") == at_node.value("ssh_sessions_open") == 1
        session.stdin.close()
        session.wait(10)
    assert all(one.value("connections_open", kind="ssh") == 1 for one in taken)
    assert all(one.value("tunnels_open", role="node") == 1 for one in taken)

    wait_until(lambda: Scrape(front).value("connections_open", kind="ssh") == 0, 5, "the connection is over")
    after = Scrape(front)
    assert after.value("connections_routed_total", kind="ssh") >= 1
    assert after.value("logins_total", result="ok") >= 1
    assert after.value("certificate_expiry_timestamp_seconds", role="proxy") > time.time()
    wait_until(lambda: Scrape(port).value("audit_waiting_events") == 0, 10, "events are shipped")
    assert Scrape(port).value("audit_events_total", type="session.end") >= 1
    assert after.value("event_loop_lag_seconds_count") > 0
    counters = {name for one in TABLE.values() if (name := one.shown).endswith("_total")}
    for earlier, later in zip(taken[:1], [after], strict=True):
        for sample in earlier.samples:
            if sample.name in counters:
                assert later.value(sample.name.removeprefix("monoport_"), **sample.labels) >= sample.value


def test_no_label_carries_what_strangers_choose(watched: tuple[Cluster, int, Daemon, int], user: Person) -> None:
    """Logins of unknown users, unknown names and protocols leave numbers, and not one new label."""
    cluster, front, _, port = watched
    for number in range(20):
        with socket.create_connection(("127.0.0.1", cluster.port), 10) as stranger:
            stranger.sendall(f"STRANGE{number} protocol\r\n\r\n".encode())
            stranger.recv(100)
    cluster.login(cluster.person("mallory"), "--no-ssh-setup", password="wrong", code=1)
    user.tsh("ssh", "no-account@node", "true", code=None)
    user.tsh("ssh", "root@no-such-node", "true", code=None)

    for scrape in (Scrape(front), Scrape(port)):
        sets: dict[str, set[tuple[str, ...]]] = {}
        for sample in scrape.samples:
            if not sample.name.startswith("monoport_"):
                continue
            family = sample.name
            for ending in ("_bucket", "_sum", "_count"):
                family = family if family in LABELS else family.removesuffix(ending)
            assert set(sample.labels) - {"le"} == LABELS[family], sample
            sets.setdefault(sample.name, set()).add(tuple(sample.labels.values()))
        assert max(map(len, sets.values())) <= SETS
        for name in ("alice", "mallory", "STRANGE", "no-such-node", "no-account", "example.com"):
            assert name not in scrape.text
    assert Scrape(front).value("connections_refused_total") >= 20
    assert Scrape(front).value("logins_total", result="failed") >= 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/metrics", 405), ("DELETE", "/healthz", 405), ("GET", "/debug/pprof", 404)],
)
def test_everything_else_is_refused(
    watched: tuple[Cluster, int, Daemon, int], method: str, path: str, status: int
) -> None:
    assert ask(watched[1], path, method)[0] == status


def test_a_denial_ends_with_the_id_that_the_log_has(watched: tuple[Cluster, int, Daemon, int], user: Person) -> None:
    cluster = watched[0]
    denied = user.tsh("ssh", "no-account@node", "true", code=None)
    found = denied.stderr.partition("[connection ")[2].partition("]")[0]
    assert found, denied.stderr
    # the line of an ended connection is written with others', up to 50 ms later
    wait_until(lambda: f"connection={found}" in cluster.front.text(), 15, "the front door's own line")
    wait_until(
        lambda: found in cluster.tctl("events", "ls", "--format=json").stdout, 15, "the event of that connection"
    )
