"""`tsh proxy db`, `db env` and `db config` as people use them: what is printed is what is run."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from .clients import Client, distribution, program
from .cluster import BIN, Cluster, Person, free_port, wait_until
from .postgres import PostgresServer, straight

WHO = "select current_user || '/' || current_database()"
PSQL = program("psql", "--version")


class LocalProxy:
    """A running `tsh proxy db`, and everything that it has said."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines))
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
        ]
        for each in self._readers:
            each.start()

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        lines.extend(line.decode().rstrip("\n") for line in stream)  # type: ignore[attr-defined]

    def form(self, label: str) -> str:
        """How it says to connect."""

        def found() -> str | None:
            return next((line.strip() for line in self.out if line.strip().startswith(label + " ")), None)

        line: str = wait_until(found, 20, f"{label} in {self.out} {self.err}")
        return line.removeprefix(label).strip()

    def end(self) -> None:
        for each in self._readers:
            each.join(15)


@contextmanager
def proxy_db(person: Person, *words: str | Path) -> Iterator[LocalProxy]:
    """`tsh proxy db` until the block ends, by Ctrl-C."""
    process = subprocess.Popen(
        [BIN / "tsh", "proxy", "db", *words],
        env=person.env(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        running = LocalProxy(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(15)
            running.end()
            assert not any("Traceback" in line for line in running.err), running.err


def paste(person: Person, line: str, query: str = WHO) -> str:
    """Run a printed psql command in a shell, with a query."""
    return person.run("sh", "-c", f"{line} -XAtqc {shlex.quote(query)}").stdout


@pytest.mark.client(Client("psql", "postgres", "`tsh proxy db --tunnel pg`, and the command that it prints", PSQL))
def test_psql_by_the_command_that_is_printed(dba: Person, need: Callable[[str], str]) -> None:
    need("psql")
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    with proxy_db(dba, "--tunnel", "--listen", f"127.0.0.1:{free_port()}", "pg") as proxy:
        assert paste(dba, proxy.form("psql")) == "alice/app\n"
        with psycopg.connect(proxy.form("URI")) as connection:
            assert connection.execute(WHO).fetchone() == ("alice/app",)


@pytest.mark.client(
    Client("psql", "postgres", "`tsh proxy db pg`, and the command that it prints: psql's own TLS inside ours", PSQL)
)
def test_psql_with_its_own_tls_inside_ours(dba: Person, need: Callable[[str], str]) -> None:
    need("psql")
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    with proxy_db(dba, "pg") as proxy:
        line = proxy.form("psql")
        assert "sslmode=verify-full" in line
        assert paste(dba, line) == "alice/app\n"
        with psycopg.connect(proxy.form("URI")) as connection:  # libpq 18: ALPN inside, too
            assert connection.execute(WHO).fetchone() == ("alice/app",)
            connection.cancel_safe()
        refused = dba.run("sh", "-c", line.replace("sslcert=", "sslcert=/nowhere") + " -c 'select 1'", code=2)
        assert refused.stderr


@pytest.mark.client(Client("psql", "postgres", "`tsh proxy db --unix FOLDER pg`: `host=FOLDER`", PSQL))
def test_psql_over_a_unix_socket(dba: Person, tmp_path: Path, need: Callable[[str], str]) -> None:
    need("psql")
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    folder = tmp_path / "s"
    with proxy_db(dba, "--unix", folder, "pg") as proxy:
        assert paste(dba, proxy.form("psql")) == "alice/app\n"
        assert (folder / ".s.PGSQL.5432").stat().st_mode & 0o777 == 0o600
        with psycopg.connect(proxy.form("URI")) as connection:
            assert connection.execute(WHO).fetchone() == ("alice/app",)
    assert list(folder.iterdir()) == []


def test_a_local_proxy_goes_on_over_a_new_login(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    """The key changes, too: what runs goes on with the old certificate, what comes gets the new one."""
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    reader = ("--tunnel", "--db-user=reader", "--db-name=postgres", "pg")
    with proxy_db(dba, "--tunnel", "pg") as mine, proxy_db(dba, *reader) as other:
        here, there = mine.form("URI"), other.form("URI")
        with psycopg.connect(here) as first, psycopg.connect(there) as second:
            cluster.login(dba)
            assert first.execute(WHO).fetchone() == ("alice/app",)
            assert second.execute(WHO).fetchone() == ("reader/postgres",)
            for uri, who in ((here, "alice/app"), (there, "reader/postgres")):
                with psycopg.connect(uri) as after:
                    assert after.execute(WHO).fetchone() == (who,)
    assert (mine.err, other.err) == ([], [])


@pytest.mark.client(Client("psql", "postgres", "`tsh db config pg`, then `psql service=pg`", PSQL))
def test_a_service_outlives_the_renewal_of_its_login(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    psql = need("psql")
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    services = dba.home / ".pg_service.conf"
    services.write_text("[mine]\nhost=elsewhere\n")
    said = dba.tsh("db", "config", "pg").stdout
    assert f"# in {services}; use it as: psql service=pg" in said
    assert services.read_text().startswith("[mine]\nhost=elsewhere\n")
    assert said.split("\n", 1)[1] in services.read_text()
    again = ("db", "login", "pg", "--db-user=alice", "--db-name=app")
    for renew in (lambda: None, lambda: dba.tsh(*again), lambda: cluster.login(dba)):
        renew()
        assert dba.run(psql, "service=pg", "-XAtqc", WHO).stdout == "alice/app\n"
    assert dba.tsh("db", "config", "--print", "--service=two", "pg").stdout.startswith("[two]\n")
    assert "[two]" not in services.read_text()


@pytest.mark.client(Client("psql", "postgres", '`eval "$(tsh db env pg)"`, then `psql`', PSQL))
def test_variables_for_a_shell(dba: Person, need: Callable[[str], str]) -> None:
    need("psql")
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    done = dba.run("sh", "-c", f'eval "$({BIN}/tsh db env pg)"; psql -XAtqc {shlex.quote(WHO)}')
    assert done.stdout == "alice/app\n"
    pairs = json.loads(dba.tsh("db", "env", "--format=json", "pg").stdout)
    assert pairs["PGSSLMODE"] == "verify-full"


@pytest.mark.client(
    Client("psycopg", "postgres", "straight to the port: `sslnegotiation=direct`", distribution("psycopg"))
)
def test_direct_tls_straight_to_the_port(cluster: Cluster, dba: Person) -> None:
    assert psycopg.pq.version() >= 170000
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    with psycopg.connect(straight(cluster, dba) + " sslnegotiation=direct") as connection:
        assert connection.execute(WHO).fetchone() == ("alice/app",)


def test_a_pipeline_of_statements_and_one_that_fails(dba: Person, tunnel: int) -> None:
    words = f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable"
    with psycopg.connect(words, autocommit=True) as client:
        with client.pipeline():
            cursors = [client.execute("select %s::int", (number,)) for number in range(200)]
            assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(200)]
        with pytest.raises(psycopg.errors.DivisionByZero), client.pipeline():
            client.execute("select 1/%s", (0,))
        assert client.execute("select 1").fetchone() == (1,)


def test_copy_both_ways_whole(dba: Person, tunnel: int, tmp_path: Path, need: Callable[[str], str]) -> None:
    """Rows of a few bytes and rows of many, there and back."""
    psql = need("psql")
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("w") as file:
        file.writelines(f"{number}\t{'y' * (number % 7 * number % 3000)}\n" for number in range(30_000))
    words = f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable"
    script = (
        "create temporary table copied (number int, pad text);\n"
        f"\\copy copied from '{source}'\n\\copy (select * from copied order by number) to '{back}'\n"
    )
    dba.run(psql, words, "-Xqv", "ON_ERROR_STOP=1", stdin=script)
    assert back.read_bytes() == source.read_bytes()


def test_the_next_agent_is_tried_when_one_is_down(
    cluster: Cluster, dba: Person, server: PostgresServer, need: Callable[[str], str]
) -> None:
    """Two hosts of one join token serve the same database; either may be killed."""
    service = (
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: twice, protocol: postgres, uri: 'localhost:{server.port}'}}\n"
    )
    token = cluster.token("db")
    agents = [cluster.agent(name, "db", service, token=token) for name in ("one", "two")]
    for each in agents:
        each.start()
    psql = need("psql")
    wait_until(lambda: "twice" in dba.tsh("db", "ls").stdout, 15, "the database in tsh db ls")

    def hosts() -> int:
        listed = json.loads(cluster.tctl("db", "ls", "--format=json").stdout)
        return sum(row["name"] == "twice" for row in listed)

    wait_until(lambda: hosts() == 2, 15, "both agents in tctl db ls")
    dba.tsh("db", "login", "twice", "--db-user=alice", "--db-name=app")
    words = straight(cluster, dba, database="twice")
    for down, up in ((0, 1), (1, 0)):
        agents[down].kill()
        for _ in range(3):
            assert dba.run(psql, words, "-XAtqc", WHO).stdout == "alice/app\n"
        agents[down].start()
        assert agents[up].process is not None
        assert agents[up].process.poll() is None
