"""PostgreSQL through the one port: psql and psycopg against a real server that only knows certificates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from .clients import Client, distribution, program
from .cluster import BIN, Cluster, Person, wait_until
from .postgres import PostgresServer, straight

PSQL = program("psql", "--version")
DIRECT = "straight to the port: `host=pg.db.localhost sslmode=verify-full sslrootcert=… sslcert=… sslkey=…`"


@pytest.mark.client(Client("psql", "postgres", "`tsh db connect pg`", PSQL))
def test_tsh_db_connect_runs_psql(dba: Person, need) -> None:
    need("psql")
    done = dba.tsh(
        "db",
        "connect",
        "pg",
        "--db-user=alice",
        "--db-name=app",
        stdin="select current_user || '/' || current_database();\n",
    )
    assert "alice/app" in done.stdout
    failed = dba.tsh(
        "db",
        "connect",
        "pg",
        "--db-user=alice",
        "--db-name=app",
        stdin="\\set ON_ERROR_STOP on\nselect 1/0;\n",
        code=None,
    )
    assert failed.returncode == 3, "the exit status is psql's own"


@pytest.mark.client(Client("psycopg", "postgres", "`tsh proxy db -p PORT --tunnel pg`", distribution("psycopg")))
def test_psycopg_through_the_local_proxy(tunnel: int) -> None:
    with psycopg.connect(f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable") as connection:
        rows = connection.execute("select i, repeat('x', 1000) from generate_series(1, %s) i", (5000,)).fetchall()
        assert len(rows) == 5000
        ssl_user = connection.execute("select current_user").fetchone()
        assert ssl_user == ("alice",)
        with connection.cursor().copy("copy (select generate_series(1, 100000)) to stdout") as copy:
            assert sum(1 for _ in copy.rows()) == 100_000


@pytest.mark.client(Client("asyncpg", "postgres", "`tsh proxy db -p PORT --tunnel pg`", distribution("asyncpg")))
async def test_asyncpg_through_the_local_proxy(tunnel: int) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=tunnel, user="alice", database="app", ssl=False)
    try:
        assert await connection.fetchval("select current_user || $1", "!") == "alice!"
    finally:
        await connection.close()


def test_a_session_has_a_connection_of_its_own_that_the_agent_dialled_back(cluster: Cluster, tunnel: int) -> None:
    def dialled_back() -> list[str]:
        """Who holds dial-backs while a session runs; a channel serves one whose agent is slow to come."""
        with psycopg.connect(f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable") as connection:
            connection.execute("select 1")
            rows = json.loads(cluster.tctl("conns", "ls", "--format=json").stdout)
        return [one["user"] for one in rows if one["route"].startswith("dialback") and one["state"] != "refused"]

    users = wait_until(dialled_back, 30, "a dial-back")
    assert not any(user.startswith("alice@") for user in users), "it is the agent's, by its certificate"


def test_the_proxy_steps_aside_for_a_session_of_tsh(cluster: Cluster, tunnel: int) -> None:
    with psycopg.connect(f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable") as connection:
        connection.execute("select 'sealed'")
        rows = json.loads(cluster.tctl("conns", "ls", "--format=json").stdout)
    (row,) = [one for one in rows if one["state"] == "database"]
    assert row["route"] == "database postgres, sealed"


def test_tsh_proxy_all_opens_every_database_in_one_process(dba: Person) -> None:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    with subprocess.Popen(
        [BIN / "tsh", "proxy", "all"], env=dba.env() | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("pg "))
        port = int(line.split("127.0.0.1:")[1].split()[0])
        with psycopg.connect(f"host=127.0.0.1 port={port} user=alice dbname=app sslmode=disable") as connection:
            assert connection.execute("select current_user").fetchone() == ("alice",)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_cancel_through_the_local_proxy_really_cancels(tunnel: int) -> None:
    with psycopg.connect(f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable") as connection:
        timer = threading.Timer(0.5, connection.cancel_safe)
        timer.start()
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(60)")
        assert time.monotonic() - began < 20
        timer.join()


def test_ctrl_c_in_psql_cancels(dba: Person, server: PostgresServer, need) -> None:
    need("psql")
    words = [BIN / "tsh", "db", "connect", "pg", "--db-user=alice", "--db-name=app"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(words, env=dba.env(), start_new_session=True, **pipes) as process:
        process.stdin.write(b"select 'before' as a;\nselect pg_sleep(60);\nselect 'after' as b;\n")
        process.stdin.flush()
        running = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep(60)%'"
        wait_until(lambda: server.sql(running).strip() == "1", 15, "the sleeping query")
        os.killpg(process.pid, signal.SIGINT)
        seen, _ = process.communicate(timeout=20)
    assert b"canceling statement due to user request" in seen, seen


@pytest.mark.client(Client("psql", "postgres", DIRECT, PSQL))
def test_plain_psql_straight_to_the_port(cluster: Cluster, dba: Person, need) -> None:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    done = dba.run(need("psql"), straight(cluster, dba), "-Atc", "select current_user")
    assert done.stdout == "alice\n"


def test_a_server_can_take_only_certificates_that_were_signed_for_this_database(
    cluster: Cluster, dba: Person, server: PostgresServer, need
) -> None:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    ident = server.folder / "data" / "pg_ident.conf"
    before = ident.read_text()
    try:
        for database, code in (("other", 2), ("pg", 0)):
            ident.write_text(f"""pinned "/^CN=([a-z0-9_]+),OU={database},O=example\\.com$" \\1\n""")
            server.set_hba("local all all trust\nhostssl all all 127.0.0.1/32 cert clientname=DN map=pinned\n")
            done = dba.run(need("psql"), straight(cluster, dba), "-Atc", "select current_user", code=code)
            assert done.stdout == ("alice\n" if code == 0 else "")
    finally:
        ident.write_text(before)
        server.set_hba()


@pytest.mark.client(Client("psycopg", "postgres", DIRECT, distribution("psycopg")))
def test_new_libpq_offers_its_alpn_after_sslrequest(cluster: Cluster, dba: Person) -> None:
    assert psycopg.pq.version() >= 170000, "psycopg's own libpq offers ALPN postgresql"
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    with psycopg.connect(straight(cluster, dba)) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        connection.cancel_safe()


@pytest.mark.parametrize(("user", "name", "says"), [("mallory", "app", "mallory"), ("alice", "template1", "template1")])
def test_a_denial_names_what_was_refused(cluster: Cluster, dba: Person, need, user: str, name: str, says: str) -> None:
    refused = dba.tsh("db", "login", "pg", f"--db-user={user}", f"--db-name={name}", code=None)
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "role" not in refused.stderr
    decided = _last_event(cluster, "auth.deny")
    assert (decided["user"], decided["operation"]) == ("alice@example.com", "reissue")
    assert (decided["database"], decided["db_user"], decided["db_name"]) == ("pg", user, name)
    assert "looked at role access" in decided["rule"]
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    done = dba.run(need("psql"), straight(cluster, dba, user=user, name=name), "-c", "select 1", code=2)
    assert says in done.stderr
    assert "role" not in done.stderr


def _last_event(cluster: Cluster, event_type: str) -> dict[str, Any]:
    """The fields of the newest event of a type, which is there by the time its request was answered."""
    events = json.loads(cluster.tctl("events", "ls", "--type", event_type, "--format=json").stdout)
    return dict(events[0])


def test_no_certificate_no_byte_to_the_server(cluster: Cluster, dba: Person, server: PostgresServer, need) -> None:
    before = server.log_text().count("connection received")
    words = " ".join(word for word in straight(cluster, dba).split() if not word.startswith(("sslcert", "sslkey")))
    done = dba.run(need("psql"), words + " sslcert=/nowhere", "-c", "select 1", code=2)
    assert done.stderr
    assert server.log_text().count("connection received") == before


def test_a_database_that_is_down_and_one_that_is_unknown(dba: Person) -> None:
    down = dba.tsh("db", "connect", "gone", "--db-user=alice", "--db-name=app", stdin="select 1;\n", code=None)
    assert down.returncode != 0
    assert "gone" in down.stderr
    unknown = dba.tsh("db", "connect", "nosuch", "--db-user=alice", "--db-name=app", code=1)
    assert "nosuch" in unknown.stderr
    assert len(unknown.stderr.strip().splitlines()) == 1


def test_statements_of_both_protocols_are_audited(cluster: Cluster, dba: Person, tunnel: int) -> None:
    with psycopg.connect(f"host=127.0.0.1 port={tunnel} user=alice dbname=app sslmode=disable") as connection:
        connection.execute("select 'simple-statement'")
        connection.execute("select %s || 'extended-statement'", ("x",), prepare=True)

    def audited() -> bool:
        shown = json.dumps(json.loads(cluster.tctl("events", "ls", "--format=json").stdout))
        return "simple-statement" in shown and "extended-statement" in shown

    wait_until(audited, 15, "both statements in tctl events ls")


def test_logout_takes_the_certificate_away(dba: Person) -> None:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    certificate = Path(dba.home) / ".tsh/keys/localhost/alice-db/example.com/pg-x509.pem"
    assert certificate.exists()
    assert certificate.with_name("pg.pem").exists()
    dba.tsh("db", "logout", "pg")
    assert not certificate.exists()
