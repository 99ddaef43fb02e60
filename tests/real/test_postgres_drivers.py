"""Drivers of other languages through the one port, both ways: by a local proxy, and straight with their own TLS."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ..conftest import fetched  # noqa: TID252 # tests are no package
from .clients import Client, distribution
from .cluster import Cluster, Person

PROGRAMS = Path(__file__).parent / "programs"
ASYNCPG = Client(
    "asyncpg", "postgres", "straight to the port: `ssl=` a context with the certificate", distribution("asyncpg")
)
LENT = "`tsh proxy db -p PORT --tunnel pg`"


def files(person: Person) -> dict[str, str]:
    """The paths of a login to the database `pg`."""
    keys = person.home / ".tsh/keys/localhost"
    folder = keys / "alice-db/example.com"
    return {
        "ca": f"{keys}/certs.pem",
        "cert": f"{folder}/pg-x509.pem",
        "key": f"{keys}/alice",
        "named key": f"{folder}/pg.key",
    }


def logged_in(dba: Person) -> dict[str, str]:
    dba.tsh("db", "login", "pg", "--db-user=alice", "--db-name=app")
    return files(dba)


async def conversation(**how: Any) -> None:
    """What is expected of asyncpg, whichever way it has come."""
    connection = await asyncpg.connect(user="alice", database="app", timeout=15, **how)
    try:
        assert await connection.fetchval("select current_user || '/' || current_database()") == "alice/app"
        statement = await connection.prepare("select $1::int + 1")
        assert [await statement.fetchval(number) for number in range(20)] == list(range(1, 21))
        heard: asyncio.Queue[str] = asyncio.Queue()
        await connection.add_listener("monoport", lambda *words: heard.put_nowait(words[-1]))
        await connection.execute("select pg_notify('monoport', 'from asyncpg')")
        assert await asyncio.wait_for(heard.get(), 15) == "from asyncpg"
        await connection.execute("create temporary table copied (number int, pad text)")
        rows = [(number, "x" * 100) for number in range(20_000)]
        await connection.copy_records_to_table("copied", records=rows)
        assert await connection.fetchval("select sum(number) from copied") == sum(range(20_000))
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute("set statement_timeout = 50; select pg_sleep(60)")
    finally:
        await connection.close()


@pytest.mark.client(ASYNCPG)
async def test_asyncpg_straight_to_the_port(cluster: Cluster, dba: Person) -> None:
    paths = logged_in(dba)
    context = ssl.create_default_context(cafile=paths["ca"])
    context.load_cert_chain(paths["cert"], paths["key"])
    await conversation(host="localhost", port=cluster.port, ssl=context)


async def test_asyncpg_by_a_local_proxy(tunnel: int) -> None:
    await conversation(host="127.0.0.1", port=tunnel, ssl=False)


# --- node-postgres


def node_version() -> str:
    found: str = json.loads(fetched("node/node_modules/pg/package.json").read_text())["version"]
    return found


def run_node(dba: Person, node: str, **options: Any) -> None:
    modules = fetched("node/node_modules")
    options |= {"user": "alice", "database": "app"}
    done = dba.run(node, PROGRAMS / "node/pg.cjs", json.dumps(options), NODE_PATH=str(modules))
    assert json.loads(done.stdout) == {
        "who": "alice/app", "sums": [42, 3], "rows": 5000, "heard": "from node", "failed": "22012"
    }  # fmt: skip


@pytest.mark.client(Client("node-postgres (`pg`)", "postgres", LENT, node_version))
def test_node_postgres_by_a_local_proxy(dba: Person, tunnel: int, need: Callable[[str], str]) -> None:
    run_node(dba, need("node"), host="127.0.0.1", port=tunnel)


@pytest.mark.client(
    Client("node-postgres (`pg`)", "postgres", "straight to the port: `ssl: { ca, cert, key }`", node_version)
)
def test_node_postgres_straight_to_the_port(cluster: Cluster, dba: Person, need: Callable[[str], str]) -> None:
    paths = logged_in(dba)
    tls = {name: paths[name] for name in ("ca", "cert", "key")}
    run_node(dba, need("node"), host="localhost", port=cluster.port, ssl=tls)


# --- JDBC


@pytest.fixture(scope="session")
def java(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], str]) -> list[str]:
    """The words that run the Java client."""
    jar = fetched(f"java/postgresql-{jdbc_version()}.jar")
    classes = tmp_path_factory.mktemp("classes")
    words = [need("javac"), "-Werror", "-Xlint:all", "-cp", str(jar), "-d", str(classes)]
    subprocess.run([*words, str(PROGRAMS / "java/Rows.java")], check=True, capture_output=True, text=True)
    return [need("java"), "-XX:TieredStopAtLevel=1", "-Xmx128m", "-cp", f"{jar}{os.pathsep}{classes}", "Rows"]


def jdbc_version() -> str:
    found = re.search(r"jdbc=([\d.]+)", (Path(__file__).parents[2] / "scripts/clients").read_text())
    assert found
    return found[1]


def run_java(dba: Person, java: list[str], url: str) -> None:
    done = dba.run(*java, url)
    assert done.stdout.splitlines() == ["who alice/app", "sum 36", "rows 5000", "copied 20000", "failed 22012"]


@pytest.mark.client(Client("PostgreSQL JDBC driver", "postgres", LENT, jdbc_version))
def test_jdbc_by_a_local_proxy(dba: Person, tunnel: int, java: list[str]) -> None:
    run_java(dba, java, f"jdbc:postgresql://127.0.0.1:{tunnel}/app?user=alice&sslmode=disable")


@pytest.mark.client(
    Client(
        "PostgreSQL JDBC driver",
        "postgres",
        "straight to the port: `sslmode=verify-full`, `sslcert=pg-x509.pem`, `sslkey=pg.key`, `pemKeyAlgorithm=EC`",
        jdbc_version,
    )
)
def test_jdbc_straight_to_the_port(cluster: Cluster, dba: Person, java: list[str]) -> None:
    paths = logged_in(dba)
    run_java(
        dba,
        java,
        f"jdbc:postgresql://localhost:{cluster.port}/app?user=alice&sslmode=verify-full&sslrootcert={paths['ca']}"
        f"&sslcert={paths['cert']}&sslkey={paths['named key']}&pemKeyAlgorithm=EC",
    )
