"""kill -9 of whole daemons at random moments, while a client runs statements: what has run is in the audit log.

Here for proxy, auth service and database agent as they are started; tests/audit/test_soak.py and
tests/auth/test_crash.py do the same, far more often, to spool and auth service alone. The long one runs by `make soak`.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from .cluster import Cluster, Daemon, wait_until
from .postgres import PostgresServer
from .test_postgres_local import proxy_db

TABLE = "create role alice login; create table ran (number int); grant insert on ran to alice;"
RUNNING = 10  # statements that are answered before the next kill: the daemons are in the middle of their work
BACK = 60  # seconds until a client is served again: both daemons start anew, and the tunnel's pauses have grown


@dataclass(frozen=True)
class World:
    cluster: Cluster
    agent: Daemon
    server: PostgresServer


@pytest.fixture
def world(tmp_path: Path, need: Callable[[str], str]) -> Iterator[World]:
    """A cluster of its own, because it is killed: auth and proxy in one daemon, a database's agent in another."""
    need("postgres")
    cluster = Cluster(tmp_path, "killed.example.com")
    try:
        cluster.front.start()
        cluster.add_user("alice", "--roles=access", "--db-users=alice", "--db-names=postgres")
        cluster.tctl("auth", "sign", "--format=db", "--host=localhost", f"--out={tmp_path}/server")
        server = PostgresServer.from_files(tmp_path / "server")
        server.start()
        try:
            server.sql(TABLE)
            databases = f"    - {{name: pg, protocol: postgres, uri: 'localhost:{server.port}'}}\n"
            agent = cluster.agent("dbhost", "db", f"db_service:\n  enabled: yes\n  databases:\n{databases}")
            agent.start()
            yield World(cluster, agent, server)
        finally:
            server.stop()
    finally:
        cluster.stop()


class Worker:
    """Runs numbered statements one after the other, each once, and connects again whenever it is cut off."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.tried = 0
        self.answered: list[int] = []
        self.cut = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._work, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)

    def _work(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                with psycopg.connect(self._uri, autocommit=True, connect_timeout=5) as session:
                    while not over.is_set():
                        self.tried += 1
                        session.execute(f"insert into ran values ({self.tried})")
                        self.answered.append(self.tried)
            except psycopg.OperationalError:
                self.cut += 1
                over.wait(0.05)


def kill_and_look(world: World, kills: int, chance: random.Random) -> None:
    """Kill agent, front or both so often; every statement that ran is in the audit log once, answered or not."""
    front, cluster = world.cluster.front, world.cluster
    alice = cluster.person("alice")
    cluster.login(alice, "--no-ssh-setup")
    wait_until(lambda: "pg" in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    with proxy_db(alice, "--tunnel", "--db-user=alice", "--db-name=postgres", "pg") as proxy:
        worker = Worker(proxy.form("URI"))
        with worker.working():
            for number in range(kills):
                victims = ((world.agent,), (front,), (front, world.agent))[number % 3]
                enough = len(worker.answered) + RUNNING
                wait_until(lambda: len(worker.answered) >= enough, BACK, f"statements before kill {number + 1}")  # noqa: B023
                timer = threading.Timer(chance.uniform(0.0, 0.5), lambda: [one.kill() for one in victims])  # noqa: B023
                timer.start()
                timer.join()
                for one in victims:
                    one.start()
            enough = len(worker.answered) + RUNNING
            wait_until(lambda: len(worker.answered) >= enough, BACK, "statements after the last kill")
    assert worker.cut >= kills, "each kill ended a session"

    ran = {int(line) for line in world.server.sql("select number from ran").split()}
    assert set(worker.answered) <= ran
    audited: Counter[int] = Counter()

    def shipped() -> bool:
        words = ("--type=db.query", "--format=json", f"--limit={2 * worker.tried}")
        rows = json.loads(cluster.tctl("events", "ls", *words).stdout)
        found = (re.fullmatch(r"insert into ran values \((\d+)\)", str(row["statement"])) for row in rows)
        audited.clear()
        audited.update(int(one[1]) for one in found if one)
        return ran <= set(audited)

    try:
        wait_until(shipped, BACK, "every statement that ran in the audit log")
    except AssertionError:
        raise AssertionError(f"{sorted(ran - set(audited))} of {len(ran)} ran and are not in the audit log") from None
    assert max(audited.values()) == 1, "none is there twice"


def test_three_kills_of_daemons_lose_no_statement(world: World) -> None:
    kill_and_look(world, 3, random.Random(3))


@pytest.mark.soak
def test_sixty_kills_of_daemons_lose_no_statement(world: World) -> None:
    kill_and_look(world, 60, random.Random())
