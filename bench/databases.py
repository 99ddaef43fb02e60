"""`make bench`, databases: monoport's whole chain beside hops of HAProxy, on PostgreSQL, MariaDB and MongoDB.

monoport's chain: local proxy (`tsh proxy db --tunnel`), proxy, dial-back, agent with its audit log, TLS to the server.
HAProxy's: one hop that puts plaintext into TLS with a client certificate, one that ends it, plaintext to the server;
and the same with TLS to the server, as the agent has it. What is compared is the processor time of all processes of a
chain for the same load, from /proc, and how long the load's clients wait. COPY also by channel of the tunnel, from an
agent that does not dial back. Then how long a client waits for a connection, one after the other, by each way.

    databases.py [--rounds N] [--scale F] [--work NAME,...]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg

import pki
import rivals
from chains import Chain, Monoport, haproxy
from monoport.daemon.demo.cluster import Cluster
from monoport.daemon.demo.databases import POSTGRES
from monoport.daemon.demo.postgres import HBA, PostgresServer, find
from run import BUILD, aligned, facts
from servers import DOCUMENTS, MariaDb, MongoDb

PAGE = rivals.HERE.parent / "docs" / "benchmarks-databases.md"
CLIENTS = 16
STATEMENTS = 1500  # of each client in a round: making its session is a twentieth of that, and has a figure of its own
GB = 1_000_000_000
ROW = 1000  # bytes of a row of bulk data
WAITS = 300  # connections, one after the other
CHANNEL = "pg-channel"  # the database whose agent leaves everything in its tunnel
# HAProxy speaks no PostgreSQL: its last hop reaches the server in plaintext, which is let in for this alone.
PLAIN = HBA + "hostnossl all all 127.0.0.1/32 trust\n"

Figures = tuple[float, float | None]  # processor time, and the clients' wait in milliseconds where there is one


def libpq(chain: Chain) -> str:
    """libpq's words for a chain."""
    return f"host=127.0.0.1 port={chain.port} user=demo dbname=demo sslmode=disable"


def mysql(chain: Chain) -> list[str]:
    """The words of MariaDB's programs for a chain."""
    return ["--no-defaults", "--host=127.0.0.1", f"--port={chain.port}", f"--user={chain.user}", "--skip-ssl"]


def load(command: list[str], stdin: int | None = None) -> str:
    """Run one load to its end, and return what it printed."""
    keep = subprocess.PIPE if command[0].endswith(("pgbench", "slap")) or "read" in command else subprocess.DEVNULL
    done = subprocess.run(
        command, stdin=stdin or subprocess.DEVNULL, stdout=keep, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: {command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout or ""


def found(pattern: str, text: str) -> float:
    """The number that a load printed."""
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"bench: nothing like {pattern} in: {text[-500:]}")
    return float(match[1])


def pg_selects(chain: Chain, scale: float) -> Figures:
    """Select-only pgbench: microseconds per transaction."""
    each = max(int(STATEMENTS * scale), 10)
    words = [_program("pgbench"), "-n", "-S", "-c", str(CLIENTS), "-j", "2", "-t", str(each), libpq(chain)]
    before = chain.spent()
    said = load(words)
    return (chain.spent() - before) / (each * CLIENTS) * 1e6, found(r"latency average = ([\d.]+) ms", said)


def pg_copy_out(chain: Chain, scale: float) -> Figures:
    """COPY TO STDOUT: seconds per GB."""
    query = f"copy (select repeat('x', {ROW - 1}) from generate_series(1, {int(GB * scale) // ROW})) to stdout"
    before = chain.spent()
    load([_program("psql"), "-XAtqc", query, libpq(chain)])
    return (chain.spent() - before) / scale, None


def pg_copy_in(chain: Chain, scale: float) -> Figures:
    """COPY FROM STDIN into nowhere: seconds per GB."""
    reading, writing = os.pipe()
    lines = f"yes {'x' * (ROW - 1)} | head -n {int(GB * scale) // ROW}"
    with subprocess.Popen(["sh", "-c", lines], stdout=writing) as source:
        os.close(writing)
        before = chain.spent()
        load([_program("psql"), "-XAtqc", "copy nowhere from stdin where false", libpq(chain)], reading)
        used = chain.spent() - before
        os.close(reading)
        source.wait()
    return used / scale, None


def my_selects(chain: Chain, scale: float) -> Figures:
    """Point selects by mariadb-slap: microseconds per statement."""
    count = max(int(STATEMENTS * scale), 10) * CLIENTS
    query = "select text from points where id = 4711"
    words = ["mariadb-slap", *mysql(chain), "--create-schema=demo", "--no-drop", f"--concurrency={CLIENTS}"]
    before = chain.spent()
    said = load([*words, f"--number-of-queries={count}", f"--query={query}"])
    took = found(r"Average number of seconds to run all queries: ([\d.]+)", said)
    return (chain.spent() - before) / count * 1e6, took * CLIENTS / count * 1000


def my_result(chain: Chain, scale: float) -> Figures:
    """One large result: seconds per GB."""
    query = f"select repeat('x', {ROW - 1}) from seq_1_to_{int(GB * scale) // ROW}"
    before = chain.spent()
    load(["mariadb", *mysql(chain), "-NB", "--quick", "demo", "-e", query])
    return (chain.spent() - before) / scale, None


def mongo_reads(chain: Chain, scale: float) -> Figures:
    """Point reads by PyMongo: microseconds per read."""
    each = max(int(STATEMENTS * scale), 10)
    uri = f"mongodb://127.0.0.1:{chain.port}/?directConnection=true"
    words = [sys.executable, str(rivals.HERE / "mongoload.py"), "read", uri, str(DOCUMENTS), str(CLIENTS), str(each)]
    before = chain.spent()
    said = load(words)
    return (chain.spent() - before) / (each * CLIENTS) * 1e6, float(said)


@dataclass(frozen=True, slots=True)
class Work:
    """One row: on which server, its load, how its cost is put, and the ratio that is aimed at."""

    server: str
    title: str
    run: Callable[[Chain, float], Figures]
    form: str
    aim: float


WORKS = {
    "pg-selects": Work("pg", f"PostgreSQL, pgbench -S, {CLIENTS} clients, each", pg_selects, "{:.0f} us", 1.5),
    "my-selects": Work("my", f"MariaDB, point select, {CLIENTS} clients, each", my_selects, "{:.0f} us", 1.5),
    "mongo-reads": Work("mongo", f"MongoDB, point read, {CLIENTS} clients, each", mongo_reads, "{:.0f} us", 1.5),
    "pg-copy-out": Work("pg", "PostgreSQL, COPY TO STDOUT, per GB", pg_copy_out, "{:.2f} s", 1.0),
    "pg-copy-in": Work("pg", "PostgreSQL, COPY FROM STDIN, per GB", pg_copy_in, "{:.2f} s", 1.0),
    "channel-out": Work(CHANNEL, "COPY TO STDOUT by channel of the tunnel", pg_copy_out, "{:.2f} s", 1.3),
    "channel-in": Work(CHANNEL, "COPY FROM STDIN by channel of the tunnel", pg_copy_in, "{:.2f} s", 1.3),
    "my-result": Work("my", "MariaDB, one large result, per GB", my_result, "{:.2f} s", 1.0),
}
WAYS = ("monoport", "haproxy", "secured")
Results = dict[str, dict[str, list[Figures]]]  # [work][way], a pair for each round


def servers(
    monoport: Monoport, postgres: PostgresServer, wanted: set[str], stack: ExitStack
) -> Iterator[tuple[str, int, str, Chain]]:
    """Start each server that is wanted: its name, its plaintext port, as whom to come there, monoport's chain."""
    if "pg" in wanted:
        yield "pg", postgres.port, "demo", monoport.chain("pg")
    if CHANNEL in wanted:
        database = {"name": CHANNEL, "protocol": "postgres", "uri": f"localhost:{postgres.port}"}
        agent = monoport.agent("channels", [database], dial_back=False)
        yield CHANNEL, postgres.port, "demo", monoport.chain(CHANNEL, agent, "channels")
    more: list[tuple[dict[str, str], int, str]] = []
    if "my" in wanted:
        mariadb = MariaDb(monoport.certificate("mariadb"))
        stack.callback(mariadb.stop)
        more.append(({"name": "my", "protocol": "mysql", "uri": f"localhost:{mariadb.port}"}, mariadb.plain, "plain"))
    if "mongo" in wanted:
        mongo = MongoDb(monoport.certificate("mongodb"))
        stack.callback(mongo.stop)
        uri = f"mongodb://127.0.0.1:{mongo.plain}/"
        load([sys.executable, str(rivals.HERE / "mongoload.py"), "fill", uri, str(DOCUMENTS)])
        more.append(({"name": "mongo", "protocol": "mongodb", "uri": f"localhost:{mongo.port}"}, mongo.plain, "demo"))
    if more:
        agent = monoport.agent("bench", [words for words, _, _ in more])
        for words, plain, user in more:
            yield words["name"], plain, user, monoport.chain(words["name"], agent)


def run(works: list[str], rounds: int, scale: float) -> tuple[Results, dict[str, list[float]]]:
    """Every figure of every round, and the waits for a connection by each way."""
    results: Results = {work: {} for work in works}
    files = pki.make(BUILD / "pki")
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        folder.chmod(0o711)  # PostgreSQL runs as somebody else where we are root
        cluster = Cluster(folder, rivals.free_ports(1), temporary=True, kinds=(POSTGRES,))
        stack.callback(cluster.stop)
        for _, start in cluster.steps():
            start()
        postgres = _prepared(cluster)
        monoport = Monoport(cluster)
        stack.callback(monoport.stop)
        chains: dict[str, list[Chain]] = {}
        for name, plain, user, first in servers(monoport, postgres, {WORKS[work].server for work in works}, stack):
            stack.callback(first.stop)
            chains[name] = [first]
            for secured in (False, True):
                chains[name].append(haproxy(files, folder, plain, user, secured=secured))
                stack.callback(chains[name][-1].stop)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for work in works:
                ways = list(zip(WAYS, chains[WORKS[work].server], strict=True))
                for way, chain in ways[number % 3 :] + ways[: number % 3]:
                    figures = WORKS[work].run(chain, scale)
                    results[work].setdefault(way, []).append(figures)
                    print(f"  {work:12} {way:9} {figures[0]:9.3f} {figures[1] or 0:8.3f}", file=sys.stderr)
        if not {"pg", CHANNEL} <= chains.keys():
            return results, {}
        compared = [chains["pg"][0], chains[CHANNEL][0], chains["pg"][1]]
        return results, {chain.name: waits(chain, max(int(WAITS * scale), 20)) for chain in compared}


def _prepared(cluster: Cluster) -> PostgresServer:
    """The demonstration's PostgreSQL, with what the loads need."""
    server = cluster.servers[POSTGRES.name]
    assert isinstance(server, PostgresServer)
    (server.folder / "data" / "pg_hba.conf").write_text(PLAIN)
    server.sql("select pg_reload_conf()")
    server.sql("create table nowhere (line text); alter table nowhere owner to demo;", "demo")
    load([_program("pgbench"), "-i", "-q", f"host={server.folder} port={server.port} user=postgres dbname=demo"])
    server.sql("grant select on all tables in schema public to demo; checkpoint;", "demo")
    return server


def table(results: Results) -> list[list[str]]:
    """Header and rows: medians, and the medians of the rounds' ratios beside the aim."""
    rows = [["work", "monoport", "two HAProxy", "ratio", "with TLS to the server", "ratio", "aim"]]
    for name, values in results.items():
        work = WORKS[name]
        rows.append([work.title, *_cells(values, 0, work.form), f"{work.aim:.1f}"])
        if values["monoport"][0][1] is not None:
            rows.append(["  how long its client waits", *_cells(values, 1, "{:.2f} ms"), ""])
    return rows


def _cells(values: dict[str, list[Figures]], which: int, form: str) -> list[str]:
    """monoport's figure, and each other chain's with its ratio."""

    def of(name: str) -> list[float]:
        return [one[which] or 0.0 for one in values[name]]

    ours = of("monoport")
    cells = [form.format(statistics.median(ours))]
    for other in ("haproxy", "secured"):
        ratio = statistics.median(one / theirs for one, theirs in zip(ours, of(other), strict=True))
        cells += [form.format(statistics.median(of(other))), f"{ratio:.2f}"]
    return cells


def waits(chain: Chain, count: int) -> list[float]:
    """Milliseconds until a client of a new connection may ask its first question, in ascending order."""
    took = []
    psycopg.connect(libpq(chain)).close()  # the first may fetch certificates; it is not what is measured
    for _ in range(count):
        began = time.perf_counter()
        with psycopg.connect(libpq(chain)):
            took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


def waited(results: dict[str, list[float]]) -> list[list[str]]:
    """Header and rows of what `waits` has measured."""
    titles = {"monoport": "monoport, dial-back", "channels": "monoport, channel", "haproxy": "two HAProxy hops"}
    rows = [["connection set-up after the first", "p50", "p99"]]
    for name, values in results.items():
        rows.append([titles[name], *(f"{values[int(len(values) * part)]:.1f} ms" for part in (0.5, 0.99))])
    return rows


def _program(name: str) -> str:
    path = find(name)
    if path is None:
        raise SystemExit(f"bench: no {name}: apt-get install postgresql")
    return path


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts per round")
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    asked = parser.parse_args()
    for program, package in (("haproxy", "haproxy"), ("mariadb-slap", "mariadb-client")):
        if shutil.which(program) is None:
            raise SystemExit(f"bench: no {program}: apt-get install {package}")
    results, found_waits = run([work for work in WORKS if work in asked.work.split(",")], asked.rounds, asked.scale)
    text = aligned(table(results))
    if found_waits:
        text += f"\n\n{aligned(waited(found_waits))}"
    print(text)
    if not asked.no_write:
        size = f"Medians of {asked.rounds} rounds of {asked.scale:g} of the amounts"
        PAGE.write_text(f"{HEAD}\n{text}\n\n{size} in one run on {facts()}.\n")
    return 0


HEAD = f"""# Benchmarks: databases

The last table of `bench/databases.py`, which `make bench` runs too: monoport's whole chain (local proxy, proxy,
dial-back, agent with the audit log on, TLS to the server) beside hops of HAProxy. Processor time of all processes of a
chain, without client and server, and how long the clients of the load wait. *Two HAProxy*: TLS between the two hops,
plaintext to the server. *With TLS to the server*: the second hop encrypts anew towards the server, as the agent does,
to a third that stands for the server's own TLS and is not counted. Neither reads, decides or records anything.
*By channel*: from an agent that does not dial back, whose sessions are SSH inside the TLS of its tunnel.
{CLIENTS} clients; bulk data in rows of {ROW} bytes. Where the time goes is in
[decisions/0009-database-chain.md](decisions/0009-database-chain.md).
"""


if __name__ == "__main__":
    sys.exit(main())
