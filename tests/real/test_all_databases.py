"""`tsh proxy all`: PostgreSQL, MySQL and MongoDB in one process, each by the line that the table has for it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

import psycopg
import pymysql
import pytest
from pymongo import MongoClient

from .clients import Client, distribution
from .cluster import BIN, Cluster, Person, wait_until
from .ferretdb import FerretServer
from .mariadb import MariaDbServer
from .postgres import PostgresServer
from .test_postgres_local import PSQL, WHO

ALL = "`tsh proxy all`, and the line that it prints"
STOCK = """
create database app; create user alice require subject '/O=example.com/OU=stock/CN=alice'; grant all on app.* to alice;
"""


@pytest.fixture(scope="module")
def others(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], str]
) -> Iterator[tuple[MariaDbServer, FerretServer]]:
    """A MariaDB and a MongoDB server, and one agent beside both."""
    need("mariadbd")
    prefix = tmp_path_factory.mktemp("certificates") / "server"
    cluster.tctl("auth", "sign", "--format=db", "--host=localhost,127.0.0.1", f"--out={prefix}")
    stock, papers = MariaDbServer.from_files(prefix), FerretServer.from_files(prefix)
    stock.start()
    stock.sql(STOCK)
    papers.start()
    agent = cluster.agent(
        "othershost",
        "db",
        "db_service:\n  enabled: yes\n  databases:\n"
        f"    - {{name: stock, protocol: mysql, uri: 'localhost:{stock.port}'}}\n"
        f"    - {{name: papers, protocol: mongodb, uri: 'localhost:{papers.port}'}}\n",
    )
    agent.start()
    yield stock, papers
    agent.stop()
    papers.stop()
    stock.stop()


@pytest.fixture(scope="module")
def lines(
    server: PostgresServer, others: tuple[MariaDbServer, FerretServer], alice: Person
) -> Iterator[Callable[[str], str]]:
    """What a running `tsh proxy all` says of a database, once it is open."""
    for name in ("pg", "stock", "papers"):
        wait_until(lambda name=name: f"{name} " in alice.tsh("db", "ls").stdout, 15, f"{name} in tsh db ls")
        alice.tsh("db", "login", name, "--db-user=alice", "--db-name=app")
    said: list[str] = []
    words = [BIN / "tsh", "proxy", "all"]
    with subprocess.Popen(words, env=alice.env(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=said.extend, args=(process.stdout,))
        reader.start()

        def line(name: str) -> str:
            opened = re.compile(rf"{name}  \w+  127\.0\.0\.1:\d+  (.*)\n")
            found = wait_until(lambda: next(filter(None, map(opened.fullmatch, said)), None), 20, f"{name} in {said}")
            return str(found[1])

        try:
            yield line
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(15)
            reader.join(15)
    assert process.returncode == 0


@pytest.mark.client(Client("psql", "postgres", ALL, PSQL))
def test_psql_by_its_line(lines: Callable[[str], str], alice: Person, need: Callable[[str], str]) -> None:
    need("psql")
    assert alice.run("sh", "-c", f"{lines('pg')} -XAtqc {shlex.quote(WHO)}").stdout == "alice/app\n"


@pytest.mark.client(Client("PyMySQL", "mysql", ALL, distribution("pymysql")))
def test_pymysql_by_mariadbs_line(lines: Callable[[str], str]) -> None:
    words = dict(re.findall(r"--(\w+)=(\S+)", lines("stock")))
    with (
        pymysql.connect(host=words["host"], port=int(words["port"]), user=words["user"], database="app") as client,
        client.cursor() as cursor,
    ):
        cursor.execute("select database()")
        assert cursor.fetchone() == ("app",)


@pytest.mark.client(Client("PyMongo", "mongodb", ALL, distribution("pymongo")))
def test_pymongo_by_mongoshs_line(lines: Callable[[str], str]) -> None:
    shell, uri = shlex.split(lines("papers"))
    assert shell == "mongosh"
    with MongoClient(uri, serverSelectionTimeoutMS=15_000) as client:
        people = client.get_default_database().people
        people.insert_one({"n": 1})
        assert people.count_documents({"n": 1}) == 1


def test_all_three_are_used_at_the_same_time(lines: Callable[[str], str]) -> None:
    """Each is in the middle of something while the next one begins."""
    words = dict(re.findall(r"--(\w+)=(\S+)", lines("stock")))
    with (
        psycopg.connect(shlex.split(lines("pg"))[1]) as first,
        pymysql.connect(host=words["host"], port=int(words["port"]), user=words["user"], database="app") as second,
        MongoClient(shlex.split(lines("papers"))[1], serverSelectionTimeoutMS=15_000) as third,
        second.cursor() as cursor,
    ):
        first.execute("begin")
        cursor.execute("set @x = 41")
        third.app.both.insert_one({"n": 2})
        cursor.execute("select @x + 1")
        assert cursor.fetchone() == (42,)
        assert first.execute(WHO).fetchone() == ("alice/app",)
        assert third.app.both.find_one({"n": 2}, {"_id": 0}) == {"n": 2}
