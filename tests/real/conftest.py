"""One cluster, one node and one PostgreSQL for all tests of real programs in a session."""

from __future__ import annotations

import fcntl
import getpass
import os
import pwd
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import clients
from .cluster import BIN, Cluster, Person, free_port, wait_until
from .postgres import PostgresServer

OURS = "made by the tests of monoport"  # her comment in the accounts: nobody else's alice is ever removed

POSTGRES = """
create role alice login; create role reader login; create role mallory login;
create database app owner alice;
"""

_HEARD = pytest.StashKey[dict[clients.Client, list[str]]]()
_EAR = pytest.StashKey[clients.Ear]()
_RAN = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def login() -> Iterator[str]:
    """A login of this machine: alice, made for the session when the tests run as root, else whoever runs them."""
    if os.geteuid() != 0:
        yield getpass.getuser()
        return
    # Several sessions may run on one machine. Whoever makes or removes her holds `making` for that moment; whoever uses
    # her holds `using` as a reader, and only the last of those removes her.
    locks = Path(tempfile.gettempdir())
    with open(locks / "monoport-tests-making", "a") as making, open(locks / "monoport-tests-using", "a") as using:
        fcntl.flock(making, fcntl.LOCK_EX)
        if not _exists("alice"):
            made = ["useradd", "--create-home", "--shell", "/bin/bash", "--comment", OURS, "alice"]
            subprocess.run(made, check=True, capture_output=True)
        fcntl.flock(using, fcntl.LOCK_SH)
        fcntl.flock(making, fcntl.LOCK_UN)
        yield "alice"
        fcntl.flock(making, fcntl.LOCK_EX)
        try:
            fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if pwd.getpwnam("alice").pw_gecos == OURS:
            subprocess.run(["userdel", "--force", "--remove", "alice"], check=True, capture_output=True)


def _exists(name: str) -> bool:
    return any(one.pw_name == name for one in pwd.getpwall())


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, login: str) -> Iterator[Cluster]:
    """Auth, proxy and one SSH node that joined with a token, all through one port."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.front.start()
        made.add_user(
            "alice", "--roles=access", f"--logins={login}", "--db-users=alice,reader", "--db-names=app,postgres"
        )
        made.add_user("bob", "--roles=access", "--logins=nobody-here")
        node = made.agent("node", "node", "ssh_service:\n  enabled: yes\n  labels: {env: test}\n")
        node.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def alice(cluster: Cluster) -> Iterator[Person]:
    """Alice, signed in, with an ssh-agent that holds her certificate."""
    person = cluster.person("alice")
    agent = person.start_agent()
    cluster.login(person)
    wait_until(lambda: "node" in person.tsh("ls").stdout, 15, "the node in tsh ls")
    yield person
    agent.terminate()
    agent.wait()


@pytest.fixture(scope="session")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, need) -> Iterator[PostgresServer]:
    """A real PostgreSQL whose certificate `tctl auth sign --format=db` made, and an agent beside it."""
    need("postgres")
    folder = tmp_path_factory.mktemp("certificates")
    cluster.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={folder}/server")
    server = PostgresServer.from_files(folder / "server")
    server.start()
    server.sql(POSTGRES)
    agent = cluster.agent(
        "dbhost",
        "db",
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: pg, protocol: postgres, uri: 'localhost:{server.port}', static_labels: {{env: test}}}}\n"
        f"    - {{name: gone, protocol: postgres, uri: 'localhost:{free_port()}'}}\n",
    )
    agent.start()
    yield server
    server.stop()


@pytest.fixture
def dba(server: PostgresServer, alice: Person) -> Person:
    """Alice, with the database in her list."""
    wait_until(lambda: "pg" in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    return alice


@pytest.fixture
def tunnel(dba: Person) -> Iterator[int]:
    """`tsh proxy db --tunnel` on a port of its own."""
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    port = free_port()
    words = [BIN / "tsh", "proxy", "db", "-p", str(port), "--tunnel", "pg"]
    with subprocess.Popen(words, env=dba.env(), stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout is not None
        assert str(port).encode() in proxy.stdout.readline()
        yield port
        proxy.send_signal(signal.SIGINT)
        proxy.wait(10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder that any user of the machine may enter."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):  # stop at the system's own
            parent.chmod(parent.stat().st_mode | 0o011)
    return tmp_path


@pytest.fixture(autouse=True)
def _heard(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--clients`: what the client that a test declares sends to the one port."""
    mark = request.node.get_closest_marker(clients.MARK)
    if mark is None or request.config.getoption("--clients") is None:
        yield
        return
    client = mark.args[0]
    ear = request.node.stash[_EAR] = clients.Ear(request.getfixturevalue("cluster"))
    yield
    if request.node.stash.get(_RAN, False):
        ways = ear.sent(client)
        heard = request.config.stash.setdefault(_HEARD, {}).setdefault(client, [])
        heard += [way for way in ways if way not in heard]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """With `--clients`: what the fixtures have connected is not the client's, and a test that is skipped has none."""
    if _EAR in item.stash:
        item.stash[_EAR].begin()
    yield
    item.stash[_RAN] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `--clients`: write the page, and name those whose rows stay as they were."""
    path = session.config.getoption("--clients")
    if path is None:
        return
    heard = session.config.stash.get(_HEARD, {})
    says = f"{path} is left as it is: tests failed"
    if not session.testsfailed:
        marks = (item.get_closest_marker(clients.MARK) for item in session.items)
        silent = sorted({mark.args[0].name for mark in marks if mark and mark.args[0] not in heard})
        path.write_text(clients.renewed(path.read_text() if path.exists() else "", heard))
        says = f"{path} is written" + (f"; not heard, their rows are as before: {', '.join(silent)}" if silent else "")
    session.config.pluginmanager.get_plugin("terminalreporter").write_line("\n" + says)
