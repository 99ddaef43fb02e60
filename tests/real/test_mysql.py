"""MySQL through the one port: the mariadb client and drivers against a real MariaDB that only knows certificates."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mysql.connector
import pymysql
import pytest

from ..conftest import fetched  # noqa: TID252 # tests are no package
from .clients import Client, distribution
from .cluster import BIN, Cluster, Person, free_port, wait_until
from .mariadb import MariaDbServer
from .test_postgres_local import proxy_db

PROGRAMS = Path(__file__).parent / "programs"


def release() -> str:
    """The release that `mariadb` is of; what it says first is a version of its own."""
    done = subprocess.run(["mariadb", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("Distrib ")[2].partition("-")[0]


LENT = "`tsh proxy db -p PORT --tunnel my`"
OWN_PORT = "straight to `mysql_listen_addr`, with its own TLS"
SILENT = "straight to the one port, with its own TLS, where `mysql_on_silence` is set"
BY_NAME = (
    "straight to the one port, where `mysql_on_silence` is set, with the certificate of `tsh login`: the name says "
    "which database"
)
WHO = "select concat(substring_index(current_user(), '@', 1), '/', database())"
SETUP = """
create database app; create database other;
create user alice require subject '/O=example.com/OU=my/CN=alice'; grant all on app.* to alice;
create user mallory require x509; grant all on *.* to mallory;
create user reader; grant select on app.* to reader;
"""


@pytest.fixture(scope="session")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, need) -> Iterator[MariaDbServer]:
    """A real MariaDB whose certificate `tctl auth sign --format=db` made, and an agent beside it."""
    need("mariadbd")
    folder = tmp_path_factory.mktemp("certificates")
    cluster.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={folder}/server")
    server = MariaDbServer.from_files(folder / "server")
    server.start()
    server.sql(SETUP)
    agent = cluster.agent(
        "myhost",
        "db",
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: my, protocol: mariadb, uri: 'localhost:{server.port}'}}\n"
        f"    - {{name: mygone, protocol: mysql, uri: 'localhost:{free_port()}'}}\n",
    )
    agent.start()
    yield server
    server.stop()


@pytest.fixture
def dba(server: MariaDbServer, alice: Person) -> Person:
    """Alice, with the database in her list and a login to it."""
    wait_until(lambda: "my " in alice.tsh("db", "ls").stdout, 15, "the database in tsh db ls")
    alice.tsh("db", "login", "my", "--db-user=alice", "--db-name=app")
    return alice


@pytest.fixture
def tunnel(dba: Person) -> Iterator[int]:
    """`tsh proxy db --tunnel` on a port of its own."""
    port = free_port()
    words = [BIN / "tsh", "proxy", "db", "-p", str(port), "--tunnel", "my"]
    with subprocess.Popen(words, env=dba.env(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout is not None
        assert str(port).encode() in proxy.stdout.readline()
        yield port
        proxy.send_signal(signal.SIGINT)
        proxy.wait(10)


@pytest.fixture(params=["listen_addr", "on_silence"])
def straight(request: pytest.FixtureRequest, cluster: Cluster) -> int:
    """The ports that greet: MySQL's own, and the one port after some silence."""
    return cluster.mysql_port if request.param == "listen_addr" else cluster.port


def files(person: Person, name: str = "my") -> dict[str, str]:
    """The paths of a login to a database."""
    keys = person.home / ".tsh/keys/localhost"
    return {
        "ca": f"{keys}/certs.pem",
        "cert": f"{keys}/alice-db/example.com/{name}-x509.pem",
        "key": f"{keys}/alice",
    }


def tls(person: Person) -> list[str]:
    return ["--ssl-verify-server-cert", *(f"--ssl-{name}={path}" for name, path in files(person).items())]


def rows(client: Any, statement: str, *values: Any) -> Any:
    with client.cursor() as cursor:
        cursor.execute(statement, *values)
        return [tuple(row) for row in cursor.fetchall()]


@pytest.mark.client(Client("mariadb", "mysql", "`tsh db connect my`", release))
def test_tsh_db_connect_runs_mariadb(dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    settings = dba.home / ".my.cnf"
    settings.write_text("[client]\nhost=elsewhere.invalid\nprotocol=tcp\n")  # of her own, for another server
    try:
        done = dba.tsh("db", "connect", "my", "--db-user=alice", "--db-name=app", "--", "-NB", stdin=f"{WHO};\n")
    finally:
        settings.unlink()
    assert done.stdout == "alice/app\n"
    failed = dba.tsh("db", "connect", "my", "--", "-NB", "-e", "select nothing", code=1)
    assert "Unknown column" in failed.stderr
    no_shell = dba.tsh("db", "connect", "my", code=1, PATH=str(BIN))
    assert no_shell.stderr.strip().endswith("mariadb is not installed: apt-get install mariadb-client")


def test_ctrl_c_in_mariadb_stops_the_statement(dba: Person, server: MariaDbServer, need: Callable[[str], str]) -> None:
    need("mariadb")
    words = [BIN / "tsh", "db", "connect", "my", "--", "-NB", "--force", "-e", "select sleep(60); select 'after'"]
    asleep = "select count(*) from information_schema.processlist where info like 'select sleep(60)%'"
    with subprocess.Popen(
        words, env=dba.env(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        wait_until(lambda: server.sql(asleep) == "1\n", 15, "the sleeping statement")
        os.killpg(process.pid, signal.SIGINT)
        seen, _ = process.communicate(timeout=20)
    assert server.sql(asleep) == "0\n", seen


SUBJECT = "subject '/O=example.com/OU={}/CN={}'"


def ask_who(person: Person, code: int) -> subprocess.CompletedProcess[str]:
    words = ("--db-user=reader", "--db-name=app", "--", "-NB", "-e", WHO)
    return person.tsh("db", "connect", "my", *words, code=code)


@pytest.mark.parametrize("requires", ["x509", SUBJECT.format("my", "reader")])
def test_the_real_server_takes_the_certificate_that_it_requires(
    dba: Person, server: MariaDbServer, need: Callable[[str], str], requires: str
) -> None:
    need("mariadb")
    server.sql(f"alter user reader require {requires}")
    assert ask_who(dba, 0).stdout == "reader/app\n"


@pytest.mark.parametrize("other", [("my", "alice"), ("orders", "reader")], ids=["user", "database"])
def test_the_real_server_refuses_a_certificate_for_another_user_or_database(
    dba: Person, server: MariaDbServer, need: Callable[[str], str], other: tuple[str, str]
) -> None:
    """The agent's certificate is for `reader` at `my`, whatever the account asks for: it is the server that refuses."""
    need("mariadb")
    server.sql(f"alter user reader require {SUBJECT.format(*other)}")
    before = server.log_text()
    said = ask_who(dba, 1).stderr
    assert "ERROR 1045 (28000): Access denied for user 'reader'" in said
    assert 'said database "my"; it was shown a certificate for OU=my, CN=reader: REQUIRE X509 or' in said
    assert "reader" in server.log_text().removeprefix(before), "the server's own word, not ours"


@pytest.mark.client(Client("mariadb", "mysql", "`tsh proxy db --tunnel my`, and the command that it prints", release))
def test_mariadb_by_the_command_that_is_printed(dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    with proxy_db(dba, "--tunnel", "--listen", f"127.0.0.1:{free_port()}", "my") as proxy:
        line = proxy.form("mariadb")
        assert dba.run("sh", "-c", f"{line} -NB -e {shlex.quote(WHO)}").stdout == "alice/app\n"


@pytest.mark.client(Client("mariadb", "mysql", "`tsh proxy db --unix PATH my`: `--socket=PATH`", release))
def test_mariadb_over_a_unix_socket(dba: Person, tmp_path: Path, need: Callable[[str], str]) -> None:
    need("mariadb")
    with proxy_db(dba, "--unix", tmp_path / "s", "my") as proxy:
        line = proxy.form("mariadb")
        assert dba.run("sh", "-c", f"{line} -NB -e {shlex.quote(WHO)}").stdout == "alice/app\n"


@pytest.mark.client(Client("mariadb", "mysql", "`tsh proxy db my`: its own TLS inside ours", release))
def test_mariadb_with_its_own_tls_inside_ours(dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    with proxy_db(dba, "my") as proxy:
        line = proxy.form("mariadb")
        assert "--ssl-cert=" in line
        assert dba.run("sh", "-c", f"{line} -NB -e {shlex.quote(WHO)}").stdout == "alice/app\n"
        # MariaDB's program under MySQL's name has another word for the check of the server's name.
        other = proxy.form("mysql").replace("--ssl-mode=VERIFY_IDENTITY", "--ssl-verify-server-cert")
        assert dba.run("sh", "-c", f"{other} -NB -e {shlex.quote(WHO)}").stdout == "alice/app\n"
        refused = dba.run("sh", "-c", line.partition(" --ssl-")[0] + " -e 'select 1'", code=1)
        assert "certificate required" in refused.stderr


def test_the_printed_command_verifies_the_servers_name(dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    with proxy_db(dba, "--listen", f"127.0.0.2:{free_port()}", "my") as proxy:
        line = proxy.form("mariadb")
        assert "--host=127.0.0.2 " in line, "which no certificate of the proxy carries"
        refused = dba.run("sh", "-c", f"{line} -NB -e 'select 1'", code=1)
    assert "certificate" in refused.stderr


@pytest.mark.client(Client("mariadb", "mysql", "`tsh proxy db --cert FILE`: its own TLS inside ours", release))
def test_mariadb_by_the_file_that_was_named(dba: Person, tmp_path: Path, need: Callable[[str], str]) -> None:
    need("mariadb")
    own = dba.home / ".tsh/keys/localhost/alice-db/example.com/my.pem"
    file = tmp_path / "mine"
    file.write_bytes(own.read_bytes())
    file.chmod(0o600)
    with proxy_db(dba, "--cert", file) as proxy:
        line = proxy.form("mariadb")
        assert f"--ssl-cert={file} --ssl-key={file} " in line
        assert dba.run("sh", "-c", f"{line} -NB -e {shlex.quote(WHO)}").stdout == "alice/app\n"


GUI = "`tsh proxy db --tunnel my`, and the fields that it prints for programs with forms"


@pytest.mark.client(Client("PyMySQL", "mysql", GUI, distribution("pymysql")))
def test_pymysql_by_the_fields_and_the_uri_that_are_printed(dba: Person) -> None:
    with proxy_db(dba, "--tunnel", "--listen", f"127.0.0.1:{free_port()}", "my") as proxy:
        fields = dict(part.split(" ", 1) for part in proxy.form("GUI").split(", ")[:4])
        uri = urlsplit(proxy.form("URI"))
        assert uri.scheme == "mysql"
        from_uri = {"host": uri.hostname, "port": uri.port, "user": uri.username, "database": uri.path[1:]}
        from_fields = fields | {"port": int(fields["port"])}
        assert from_fields == from_uri
        with closing(pymysql.connect(**from_fields)) as client:
            pymysql_conversation(client)


@pytest.mark.client(
    Client("mariadb", "mysql", "`tsh db config my`, then `mariadb --defaults-group-suffix=_my`", release)
)
def test_an_entry_of_my_cnf_outlives_the_renewal_of_its_login(
    cluster: Cluster, dba: Person, need: Callable[[str], str]
) -> None:
    need("mariadb")
    settings = dba.home / ".my.cnf"
    settings.write_text("[client]\nhost=elsewhere\n")
    said = dba.tsh("db", "config", "my").stdout
    assert f"# in {settings}; use it as: mariadb --defaults-group-suffix=_my" in said
    assert f"port={cluster.mysql_port}\n" in said, "where its clients are greeted at once"
    again = ("db", "login", "my", "--db-user=alice", "--db-name=app")
    try:
        for renew in (lambda: None, lambda: dba.tsh(*again), lambda: cluster.login(dba)):
            renew()
            done = dba.run("mariadb", "--defaults-group-suffix=_my", "-NB", "-e", WHO)
            assert done.stdout == "alice/app\n"
    finally:
        settings.unlink()  # others of these tests run as her, too


@pytest.mark.client(Client("mariadb", "mysql", OWN_PORT, release))
def test_mariadb_on_its_own_port(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    where = ["--no-defaults", "--host=localhost", "--protocol=tcp", f"--port={cluster.mysql_port}", "--user=alice"]
    done = dba.run("mariadb", *where, *tls(dba), "-NB", "-e", WHO)
    assert done.stdout == "alice/app\n"


@pytest.mark.client(Client("mariadb", "mysql", SILENT, release))
def test_mariadb_on_the_one_port_when_it_is_silent(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    where = ["--no-defaults", "--host=localhost", "--protocol=tcp", f"--port={cluster.port}", "--user=alice"]
    done = dba.run("mariadb", *where, *tls(dba), "-NB", "-e", WHO)
    assert done.stdout == "alice/app\n"


@pytest.mark.client(Client("PyMySQL", "mysql", LENT, distribution("pymysql")))
def test_pymysql_through_the_local_proxy(tunnel: int) -> None:
    with closing(pymysql.connect(host="127.0.0.1", port=tunnel, user="alice", database="app")) as client:
        pymysql_conversation(client)


def pymysql_conversation(client: Any) -> None:
    """What is expected of it, whichever way it has come."""
    assert rows(client, WHO) == [("alice/app",)]
    assert len(rows(client, "select seq, repeat('x', 1000) from seq_1_to_5000 where seq > %s", (0,))) == 5000
    with pytest.raises(pymysql.err.OperationalError, match='"mysql"'):
        client.select_db("mysql")
    assert rows(client, "select 1") == [(1,)]


def direct(person: Person, port: int) -> dict[str, Any]:
    """The words with which drivers for Python go there by themselves: their own TLS, our name verified."""
    paths = {f"ssl_{name}": path for name, path in files(person).items()}
    return {"host": "localhost", "port": port, "user": "alice", "ssl_verify_identity": True, **paths}


def pymysql_straight(person: Person, port: int) -> None:
    with closing(pymysql.connect(**direct(person, port))) as client:
        assert "MariaDB" in client.server_version, "the real server's, which its agent has asked"
        pymysql_conversation(client)


@pytest.mark.client(Client("PyMySQL", "mysql", OWN_PORT, distribution("pymysql")))
def test_pymysql_on_mysqls_port(cluster: Cluster, dba: Person) -> None:
    pymysql_straight(dba, cluster.mysql_port)


@pytest.mark.client(Client("PyMySQL", "mysql", SILENT, distribution("pymysql")))
def test_pymysql_on_the_one_port_when_it_is_silent(cluster: Cluster, dba: Person) -> None:
    pymysql_straight(dba, cluster.port)


@pytest.mark.client(Client("PyMySQL", "mysql", BY_NAME, distribution("pymysql")))
def test_pymysql_by_the_name_of_the_database(cluster: Cluster, dba: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but `tsh login` before it: the certificate names no database, SNI inside MySQL's own TLS does."""
    ask = socket.getaddrinfo

    def answer(host: str | None, *words: Any, **more: Any) -> Any:
        """As a DNS entry for `*.db.<public address>` would."""
        return ask("127.0.0.1" if host == "my.db.localhost" else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    plain = f"{dba.home}/.tsh/keys/localhost/alice-x509.pem"
    how = direct(dba, cluster.port) | {"host": "my.db.localhost", "ssl_cert": plain}
    with closing(pymysql.connect(**how, database="app")) as client:
        pymysql_conversation(client)


def test_the_certificate_of_a_login_needs_a_name_that_says_which_database(cluster: Cluster, dba: Person) -> None:
    plain = f"{dba.home}/.tsh/keys/localhost/alice-x509.pem"
    with pytest.raises(pymysql.err.OperationalError, match="this certificate names no database"):
        pymysql.connect(**direct(dba, cluster.port) | {"ssl_cert": plain})


@pytest.mark.client(Client("MySQL Connector/Python", "mysql", LENT, distribution("mysql-connector-python")))
def test_connector_python_through_the_local_proxy(tunnel: int) -> None:
    how = {"host": "127.0.0.1", "port": tunnel, "user": "alice", "database": "app"}
    with closing(mysql.connector.connect(**how)) as client:
        connector_conversation(client)


def connector_conversation(client: Any) -> None:
    """What is expected of it, whichever way it has come."""
    assert rows(client, WHO) == [("alice/app",)]
    with client.cursor(prepared=True) as cursor:
        for number in range(20):
            cursor.execute("select %s + 1", (number,))
            assert cursor.fetchall() == [(number + 1,)]
    with pytest.raises(mysql.connector.Error, match="cannot be changed"):
        client.cmd_change_user("mallory", "")


def connector_straight(person: Person, port: int) -> None:
    with closing(mysql.connector.connect(**direct(person, port))) as client:
        connector_conversation(client)


@pytest.mark.client(Client("MySQL Connector/Python", "mysql", OWN_PORT, distribution("mysql-connector-python")))
def test_connector_python_on_mysqls_port(cluster: Cluster, dba: Person) -> None:
    connector_straight(dba, cluster.mysql_port)


@pytest.mark.client(Client("MySQL Connector/Python", "mysql", SILENT, distribution("mysql-connector-python")))
def test_connector_python_on_the_one_port_when_it_is_silent(cluster: Cluster, dba: Person) -> None:
    connector_straight(dba, cluster.port)


def node_version() -> str:
    found: str = json.loads(fetched("node/node_modules/mysql2/package.json").read_text())["version"]
    return found


def run_node(dba: Person, node: str, **options: Any) -> None:
    modules = fetched("node/node_modules")
    done = dba.run(node, PROGRAMS / "node/mysql2.cjs", json.dumps({"user": "alice", **options}), NODE_PATH=str(modules))
    assert json.loads(done.stdout) == {
        "who": "alice/app", "sums": [42, 3], "rows": 5000, "failed": 1054, "denied": 1235
    }  # fmt: skip


@pytest.mark.client(Client("mysql2 for Node.js", "mysql", LENT, node_version))
def test_node_through_the_local_proxy(dba: Person, tunnel: int, need: Callable[[str], str]) -> None:
    run_node(dba, need("node"), host="127.0.0.1", port=tunnel, database="app")


@pytest.mark.client(Client("mysql2 for Node.js", "mysql", OWN_PORT, node_version))
def test_node_on_mysqls_port(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    run_node(dba, need("node"), host="localhost", port=cluster.mysql_port, ssl=files(dba))


@pytest.mark.client(Client("mysql2 for Node.js", "mysql", SILENT, node_version))
def test_node_on_the_one_port_when_it_is_silent(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    run_node(dba, need("node"), host="localhost", port=cluster.port, ssl=files(dba))


def test_a_database_that_is_down_and_one_that_is_unknown(dba: Person, need: Callable[[str], str]) -> None:
    need("mariadb")
    down = dba.tsh("db", "connect", "mygone", "--db-user=alice", "--", "-e", "select 1", code=1)
    assert 'database "mygone" cannot be reached from its agent' in down.stderr
    refused = dba.tsh("db", "connect", "my", "--db-user=mallory", "--", "-e", "select 1", code=1)
    assert "mallory" in refused.stderr


def test_the_next_agent_is_tried_when_one_is_down(cluster: Cluster, dba: Person, server: MariaDbServer) -> None:
    """Two hosts of one join token serve the same database; either may be killed."""
    service = (
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: mytwice, protocol: mysql, uri: 'localhost:{server.port}'}}\n"
    )
    token = cluster.token("db")
    agents = [cluster.agent(name, "db", service, token=token) for name in ("my-one", "my-two")]
    for each in agents:
        each.start()

    def hosts() -> int:
        listed = json.loads(cluster.tctl("db", "ls", "--format=json").stdout)
        return sum(row["name"] == "mytwice" for row in listed)

    wait_until(lambda: hosts() == 2, 15, "both agents in tctl db ls")
    dba.tsh("db", "login", "mytwice", "--db-user=reader", "--db-name=app")
    server.sql("alter user reader require x509")
    paths = {f"ssl_{name}": path for name, path in files(dba, "mytwice").items()}
    how = direct(dba, cluster.mysql_port) | {"user": "reader", "database": "app"} | paths
    for down in (0, 1):
        agents[down].kill()
        for _ in range(3):
            with closing(pymysql.connect(**how)) as client:
                assert rows(client, WHO) == [("reader/app",)]
        agents[down].start()


def test_statements_are_audited(cluster: Cluster, tunnel: int) -> None:
    with closing(pymysql.connect(host="127.0.0.1", port=tunnel, user="alice", database="app")) as client:
        rows(client, "select 'a statement for the log'")

    def audited() -> bool:
        shown = json.loads(cluster.tctl("events", "ls", "--format=json").stdout)
        return any("a statement for the log" in json.dumps(event) for event in shown)

    wait_until(audited, 15, "the statement in tctl events ls")


def test_nobody_connects_by_name_and_password(cluster: Cluster, server: MariaDbServer, straight: int) -> None:
    before = server.log_text()
    for words in ({"password": "x"}, {"ssl_disabled": True}):
        with pytest.raises((pymysql.err.OperationalError, OSError)):
            pymysql.connect(host="localhost", port=straight, user="alice", **words)
    assert "alice" not in server.log_text().removeprefix(before)
