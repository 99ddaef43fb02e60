"""A disk that is really full, under daemons that run: each protocol says so in its own words, and it ends by itself."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from .cluster import BIN, Cluster, Daemon, Person, free_port, wait_until
from .postgres import PostgresServer

WORDS = "the audit log cannot be written; tell your administrator"


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the daemons' folders are small file systems of their own; mounting them takes root."""
    root = tmp_path_factory.mktemp("full")
    mounted: list[Path] = []
    try:
        for name in ("front", "node", "lenient", "dbhost"):
            folder = root / name
            folder.mkdir(mode=0o700)
            words = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(folder)]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"a real full disk takes root who may mount: {done.stderr.strip()}")
            mounted.append(folder)
        yield root
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def own(disks: Path, login: str) -> Iterator[Cluster]:
    made = Cluster(disks, "full.example.com")
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", f"--logins={login}", "--db-users=alice", "--db-names=postgres")
        made.agent("node", "node", "ssh_service:\n  enabled: yes\n").start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def user(own: Cluster) -> Person:
    person = own.person("alice")
    own.login(person, "--no-ssh-setup")
    wait_until(lambda: "node" in person.tsh("ls").stdout, 15, "the node in tsh ls")
    return person


@pytest.fixture(scope="module")
def dbhost(own: Cluster, need) -> Iterator[Daemon]:
    """The agent beside a real PostgreSQL."""
    need("postgres")
    own.tctl("auth", "sign", "--format=db", "--host=localhost", f"--out={own.root}/server")
    server = PostgresServer.from_files(own.root / "server")
    try:
        server.start()
        server.sql("create role alice login;")
        where = f"[{{name: pg, protocol: postgres, uri: 'localhost:{server.port}'}}]"
        agent = own.agent("dbhost", "db", f"db_service: {{enabled: yes, databases: {where}}}\n")
        agent.start()
        yield agent
    finally:
        server.stop()


@pytest.fixture
def dba(user: Person, dbhost: Daemon, need) -> Person:
    """Alice, logged in to the database."""
    need("psql")
    wait_until(lambda: "pg" in user.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    user.tsh("db", "login", "pg", "--db-user=alice", "--db-name=postgres")
    return user


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No space is left in a folder while the body runs."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        ballast.unlink()


def refused(person: Person, where: str) -> str:
    """What `tsh ssh` says once it is refused; the last page of a file may still take an event or two."""
    done = wait_until(
        lambda: (found := person.tsh("ssh", where, "echo", "x" * 500, code=None)).returncode and found, 30, "a refusal"
    )
    return str(done.stderr)


def assert_nothing_of_files(own: Cluster, said: str) -> None:
    assert "No space" not in said, said
    assert str(own.root) not in said, "files of the host are not the user's business"


def psql(person: Person, sql: str) -> subprocess.CompletedProcess[str]:
    """What psql makes of a statement through `tsh db connect`."""
    stdin = f"\\set ON_ERROR_STOP on\n{sql};\n"
    return person.tsh("db", "connect", "pg", "--db-user=alice", "--db-name=postgres", stdin=stdin, code=None)


def refused_by_psql(person: Person) -> str:
    """What psql says once a session or its statement is refused."""
    sql = f"select length('{'x' * 500}')"
    done = wait_until(lambda: (found := psql(person, sql)).returncode and found, 60, "a refusal")
    assert "500" not in done.stdout, "a statement that is not recorded does not run"
    return str(done.stderr)


def test_an_ssh_node_with_a_full_disk(own: Cluster, user: Person, login: str) -> None:
    where = f"{login}@node"
    assert user.tsh("ssh", where, "echo", "before").stdout == "before\n"
    with full(own.root / "node"):
        said = refused(user, where)
        assert f"monoport: {WORDS}" in said
        assert_nothing_of_files(own, said)
    works = lambda: user.tsh("ssh", where, "echo", "after", code=None).stdout == "after\n"  # noqa: E731
    wait_until(works, 15, "sessions again, without a restart")
    over(next(one for one in own.daemons if one.config.name == "node.yaml"))


def over(daemon: Daemon) -> None:
    """A daemon's log has what was wrong, and that it is over."""
    assert "No space left on device" in daemon.text()
    wait_until(lambda: "the audit log is written again" in daemon.text(), 15, "the log says that it is over")


def test_logins_where_the_auth_service_has_a_full_disk(own: Cluster) -> None:
    person = own.person("alice")
    with full(own.root / "front"):
        login = lambda: (found := own.login(person, "--no-ssh-setup", code=None)).returncode and found  # noqa: E731
        failed = wait_until(login, 60, "a refused login")
        assert failed.stderr.count("\n") == 1, failed.stderr
        assert "cannot be written" in failed.stderr or "storage does not answer" in failed.stderr
        assert "new sessions are refused" in own.tctl("status", code=None).stdout
    wait_until(lambda: own.login(person, "--no-ssh-setup", code=None).returncode == 0, 20, "a login, without a restart")
    wait_until(lambda: "every event is kept" in own.tctl("status").stdout, 15, "tctl status says so")


def test_a_database_agent_with_a_full_disk(own: Cluster, dba: Person, dbhost: Daemon) -> None:
    assert "before" in psql(dba, "select 'before'").stdout
    with tunnelled(dba) as connection, full(own.root / "dbhost"):
        sql = f"select length('{'x' * 500}')"
        with pytest.raises(psycopg.Error) as caught:  # the last page of a file may still take some
            wait_until(lambda: connection.execute(sql) is None, 30, "a refused statement")
        assert f"session ended: the statement could not be recorded: {WORDS}" in str(caught.value)
        assert_nothing_of_files(own, str(caught.value))
        said = refused_by_psql(dba)
        assert WORDS in said
        assert_nothing_of_files(own, said)
    wait_until(lambda: "after" in psql(dba, "select 'after'").stdout, 15, "sessions again, without a restart")
    over(dbhost)


def test_databases_where_the_front_has_a_full_disk(own: Cluster, dba: Person) -> None:
    with full(own.root / "front"):
        said = refused_by_psql(dba)
        assert f"the session could not be recorded: {WORDS}" in said
        assert_nothing_of_files(own, said)
    wait_until(lambda: "after" in psql(dba, "select 'after'").stdout, 20, "sessions again, without a restart")
    over(own.front)


def test_sessions_go_on_where_the_configuration_says_so_and_their_events_come_late(
    own: Cluster, user: Person, login: str
) -> None:
    node = own.agent("lenient", "node", "ssh_service:\n  enabled: yes\n")
    text = node.config.read_text()
    node.config.write_text(text.replace("teleport:\n", "teleport:\n  audit: {on_failure: continue}\n", 1))
    node.start()
    wait_until(lambda: "lenient" in user.tsh("ls").stdout, 15, "the node in tsh ls")
    said = lambda text: user.tsh("ssh", f"{login}@lenient", "echo", text).stdout == text + "\n"  # noqa: E731
    noticed = lambda: said("x" * 500) and "the audit log cannot be written" in node.text()  # noqa: E731
    events = lambda: own.tctl("events", "ls", "--type=session.*", "--format=json").stdout  # noqa: E731
    with full(own.root / "lenient"):
        wait_until(noticed, 30, "a session that goes on without its event")
        assert "sessions go on unrecorded" in node.text()
        assert said("while-full")
        assert "while-full" not in events()
    wait_until(lambda: "while-full" in events(), 20, "what waited in memory")
    over(node)
    assert "audit.gap" not in own.tctl("events", "ls", "--type=audit.*").stdout, "nothing was lost"


@contextmanager
def tunnelled(person: Person) -> Iterator[psycopg.Connection]:
    """A session through `tsh proxy db`, which stays open."""
    port = free_port()
    words = [BIN / "tsh", "proxy", "db", "-p", str(port), "--tunnel", "pg"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, env=person.env(), text=True, **pipes) as proxy:
        assert proxy.stdout is not None
        assert str(port) in proxy.stdout.readline()
        where = f"host=127.0.0.1 port={port} user=alice dbname=postgres sslmode=disable"
        try:
            with psycopg.connect(where, autocommit=True) as connection:
                yield connection
        finally:
            proxy.send_signal(signal.SIGINT)
            proxy.wait(10)
