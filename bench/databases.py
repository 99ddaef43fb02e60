"""`make bench`, databases: PostgreSQL through monoport's whole chain beside the same chain of two HAProxy hops.

monoport's chain: local proxy (`tsh proxy db --tunnel`), proxy, tunnel, agent with its audit log, TLS to the server.
HAProxy's: one hop that puts plaintext into TLS with a client certificate, one that ends it, plaintext to the server.
What is compared is the processor time of all processes of a chain for the same load, from /proc. Then how long a client
waits for a connection, one after the other: by dial-back, by channel of the tunnel, and through HAProxy.

    databases.py [--rounds N] [--scale F] [--work NAME,...]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

import pki
import rivals
from monoport.daemon.demo.cluster import Cluster, environment
from monoport.daemon.demo.postgres import HBA, find
from run import BUILD, aligned, facts, spent

PAGE = rivals.HERE.parent / "docs" / "benchmarks-databases.md"
CLIENTS = 16  # of pgbench, on two threads
TRANSACTIONS = 500  # of each client in a round
GB = 1_000_000_000
ROW = 1000  # bytes of a row of COPY
WAITS = 300  # connections, one after the other
START_SECONDS = 60.0
# HAProxy speaks no PostgreSQL: its second hop reaches the server in plaintext, which is let in for this alone.
PLAIN = HBA + "hostnossl all all 127.0.0.1/32 trust\n"


@dataclass(slots=True)
class Chain:
    """One way to the server: where it begins, and the processes that it is made of."""

    name: str
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spent(self) -> float:
        """Processor time of all its processes so far, seconds."""
        return sum(spent(one.pid) for one in self.processes)

    def words(self) -> str:
        """libpq's words for it."""
        return f"host=127.0.0.1 port={self.port} user=demo dbname=demo sslmode=disable"


def load(command: list[str], stdin: int | None = None) -> None:
    """Run one load to its end."""
    done = subprocess.run(
        command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: {command[0]}: {done.stderr.decode(errors='replace').strip()[-500:]}")


def transactions(chain: Chain, scale: float) -> float:
    """Select-only pgbench: processor time per transaction, microseconds."""
    each = max(int(TRANSACTIONS * scale), 10)
    words = [_program("pgbench"), "-n", "-S", "-c", str(CLIENTS), "-j", "2", "-t", str(each), chain.words()]
    before = chain.spent()
    load(words)
    return (chain.spent() - before) / (each * CLIENTS) * 1e6


def copy_out(chain: Chain, scale: float) -> float:
    """COPY TO STDOUT: processor time per GB, seconds."""
    rows = int(GB * scale) // ROW
    query = f"copy (select repeat('x', {ROW - 1}) from generate_series(1, {rows})) to stdout"
    before = chain.spent()
    load([_program("psql"), "-XAtqc", query, chain.words()])
    return (chain.spent() - before) / scale


def copy_in(chain: Chain, scale: float) -> float:
    """COPY FROM STDIN into nowhere: processor time per GB, seconds."""
    rows = int(GB * scale) // ROW
    reading, writing = os.pipe()
    line = "x" * (ROW - 1)
    with subprocess.Popen(["sh", "-c", f"yes {line} | head -n {rows}"], stdout=writing) as source:
        os.close(writing)
        before = chain.spent()
        load([_program("psql"), "-XAtqc", "copy nowhere from stdin where false", chain.words()], reading)
        used = chain.spent() - before
        os.close(reading)
        source.wait()
    return used / scale


WORKS: dict[str, tuple[str, Callable[[Chain, float], float], str, float]] = {
    "pgbench": (f"pgbench select-only, {CLIENTS} clients, per transaction", transactions, "{:.0f} us", 1.5),
    "copy-out": ("COPY TO STDOUT, per GB", copy_out, "{:.2f} s", 1.3),
    "copy-in": ("COPY FROM STDIN, per GB", copy_in, "{:.2f} s", 1.3),
}


def haproxy(files: pki.Pki, folder: Path, server: int) -> Chain:
    """Two hops: plaintext to TLS with a client certificate, TLS to plaintext; one thread each."""
    first, second = rivals.free_ports(1), rivals.free_ports(1)
    user = folder / "user.pem"
    user.write_text(files.user_certificate.read_text() + files.user_key.read_text())
    host = f"ca-file {files.host_ca} verify required sni str(localhost) verifyhost localhost"
    common = f"alpn {rivals.DATABASE} ssl-min-ver TLSv1.3"
    ends = {
        "near": f"    bind 127.0.0.1:{first}\n    server far 127.0.0.1:{second} ssl crt {user} {host} {common}\n",
        "far": f"    bind 127.0.0.1:{second} ssl crt {files.both} {common} ca-file {files.user_ca} verify required\n"
        f"    server one 127.0.0.1:{server}\n",
    }
    chain = Chain("haproxy", first)
    for name, lines in ends.items():
        config = folder / f"{name}.cfg"
        config.write_text(
            "global\n    nbthread 1\n    maxconn 1000\n"
            "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
            f"listen {name}\n{lines}"
        )
        log = folder / f"{name}.log"
        with log.open("wb") as file:
            chain.processes.append(subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=file, stderr=file))
    for port, one, name in zip((first, second), chain.processes, ends, strict=True):
        rivals.wait(port, one, folder / f"{name}.log")
    return chain


def monoport(cluster: Cluster) -> Chain:
    """The demonstration's cluster and `tsh proxy db --tunnel`."""
    chain = Chain("monoport", rivals.free_ports(1))
    chain.processes.extend(one.process for one in cluster.processes if one.process is not None)
    person = environment(cluster, "")
    login = ["login", f"--proxy=localhost:{cluster.port}", "--user=demo", f"--ca-pin={cluster.pin}", "--no-ssh-setup"]
    subprocess.run(
        [cluster.tool("tsh"), *login],
        input=cluster.password + "\n", text=True, env=person, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    chain.processes.append(local_proxy(cluster, chain.port, "pg"))
    return chain


def local_proxy(cluster: Cluster, port: int, name: str) -> subprocess.Popen[bytes]:
    """`tsh proxy db --tunnel`, once it listens."""
    words = [cluster.tool("tsh"), "proxy", "db", "--tunnel", "-p", str(port), name]
    near = subprocess.Popen(words, env=environment(cluster, ""), stdout=subprocess.PIPE)
    assert near.stdout is not None
    near.stdout.readline()
    return near


def run(
    works: list[str], rounds: int, scale: float
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """Every figure of every round, results[work][chain], and the waits of each chain."""
    results: dict[str, dict[str, list[float]]] = {work: {} for work in works}
    files = pki.make(BUILD / "pki")
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # PostgreSQL runs as somebody else where we are root
        cluster = Cluster(folder, rivals.free_ports(1), temporary=True)
        chains: list[Chain] = []
        try:
            for _, start in cluster.steps():
                start()
            server = cluster.database
            if server is None:
                raise SystemExit("bench: no PostgreSQL: apt-get install postgresql")
            (server.folder / "data" / "pg_hba.conf").write_text(PLAIN)
            server.sql("select pg_reload_conf()")
            server.sql("create table nowhere (line text); alter table nowhere owner to demo;", "demo")
            load(
                [
                    _program("pgbench"),
                    "-i",
                    "-q",
                    "-h",
                    str(server.folder),
                    "-p",
                    str(server.port),
                    "-U",
                    "postgres",
                    "demo",
                ]
            )
            server.sql("grant select on all tables in schema public to demo; checkpoint;", "demo")
            chains.append(monoport(cluster))
            chains.append(haproxy(files, folder, server.port))
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
                for work in works:
                    for chain in chains if number % 2 else chains[::-1]:
                        value = WORKS[work][1](chain, scale)
                        results[work].setdefault(chain.name, []).append(value)
                        print(f"  {work:10} {chain.name:9} {value:9.3f}", file=sys.stderr)
            chains.append(channels(cluster, server.port))
            found = {chain.name: waits(chain, max(int(WAITS * scale), 20)) for chain in chains}
        finally:
            for chain in chains:
                for one in chain.processes:
                    if one not in [process.process for process in cluster.processes]:
                        one.send_signal(signal.SIGTERM)
                        one.wait(15)
            cluster.stop()
    return results, found


def table(results: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Header and rows: medians, and the median of the rounds' ratios beside the aim."""
    rows = [["work", "monoport", "two HAProxy", "ratio", "aim"]]
    for work, values in results.items():
        title, _, form, aim = WORKS[work]
        ours, theirs = values["monoport"], values["haproxy"]
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        cells = [form.format(statistics.median(one)) for one in (ours, theirs)]
        rows.append([title, *cells, f"{ratio:.2f}", f"{aim:.2f}"])
    return rows


CHANNELS = """\
version: v3
teleport:
  nodename: channels
  data_dir: {root}/channels
  proxy_server: localhost:{port}
  ca_pin: {pin}
  join_params: {{method: token, token_name: {token}}}
  dial_back: no
db_service:
  enabled: yes
  databases:
    - {{name: pg-channels, protocol: postgres, uri: "localhost:{server}"}}
"""


def channels(cluster: Cluster, server: int) -> Chain:
    """Another agent, which does not dial back, for the same server."""
    token = json.loads(cluster.tctl("tokens", "add", "--type=db", "--format=json"))["token"]
    config, log = cluster.root / "channels.yaml", cluster.root / "channels.log"
    config.write_text(
        CHANNELS.format(root=cluster.root, port=cluster.port, pin=cluster.pin, token=token, server=server)
    )
    config.chmod(0o600)
    with log.open("wb") as file:
        agent = subprocess.Popen([cluster.tool("monoport"), "start", "-c", str(config)], stdout=file, stderr=file)
    deadline = time.monotonic() + START_SECONDS
    while '"pg-channels"' not in cluster.tctl("db", "ls", "--format=json"):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: the second agent is not there: {log.read_text()[-500:]}")
    chain = Chain("channels", rivals.free_ports(1), [agent])
    chain.processes.append(local_proxy(cluster, chain.port, "pg-channels"))
    return chain


def waits(chain: Chain, count: int) -> list[float]:
    """Milliseconds until a client of a new connection may ask its first question, in ascending order."""
    found = []
    psycopg.connect(chain.words()).close()  # the first may fetch certificates; it is not what is measured
    for _ in range(count):
        began = time.perf_counter()
        with psycopg.connect(chain.words()):
            found.append((time.perf_counter() - began) * 1000)
    return sorted(found)


def waited(results: dict[str, list[float]]) -> list[list[str]]:
    """Header and rows of what `waits` has measured."""
    titles = {"monoport": "monoport, dial-back", "channels": "monoport, channel", "haproxy": "two HAProxy hops"}
    rows = [["connection set-up after the first", "p50", "p99"]]
    for name, values in results.items():
        rows.append([titles[name], *(f"{values[int(len(values) * part)]:.1f} ms" for part in (0.5, 0.99))])
    return rows


def _program(name: str) -> str:
    found = find(name)
    if found is None:
        raise SystemExit(f"bench: no {name}: apt-get install postgresql")
    return found


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts per round")
    parser.add_argument("--work", default=",".join(WORKS))
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    asked = parser.parse_args()
    if "haproxy" in rivals.missing():
        raise SystemExit("bench: no haproxy: apt-get install haproxy")
    results, found = run([work for work in WORKS if work in asked.work.split(",")], asked.rounds, asked.scale)
    text = f"{aligned(table(results))}\n\n{aligned(waited(found))}"
    print(text)
    if not asked.no_write:
        size = f"Medians of {asked.rounds} rounds of {asked.scale:g} of the amounts"
        PAGE.write_text(f"{HEAD}\n{text}\n\n{size} in one run on {facts()}.\n")
    return 0


HEAD = f"""# Benchmarks: databases

The last table of `bench/databases.py`, which `make bench` runs too: PostgreSQL through monoport's whole chain (local
proxy, proxy, tunnel, agent with the audit log on, TLS to the server) beside two HAProxy hops with TLS between them and
plaintext to the server. Processor time of all processes of a chain, without client and server. {CLIENTS} clients of
pgbench; COPY in rows of {ROW} bytes. Where the time goes is in
[decisions/0009-database-chain.md](decisions/0009-database-chain.md).
"""


if __name__ == "__main__":
    sys.exit(main())
