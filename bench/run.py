"""`make bench`: monoport's data plane beside HAProxy and nginx, in one run on one core each.

What is compared is the processor time that the proxy's process spends on the same load, from /proc: on a machine
with neighbours it is steadier than wall time. Several rounds, the proxies in turn within each, medians of the rounds.

    run.py [--rounds N] [--scale F] [--only NAME,...] [--work NAME,...] [--no-write]
"""

from __future__ import annotations

import argparse
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pki
import rivals
from rivals import AUDITED, AUTH, DATABASE, HERE, LOAD_CORE, SSH, Rival

BUILD = HERE / "build"
PAGE = HERE.parent / "docs" / "benchmarks.md"
IDLE = 2000  # connections held open for the memory figure
GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table: how to make the load, and how its cost is put.

    amount: connections, round trips or bytes in a round. unit: what one of `per` is called. bar: the ratio to HAProxy
    that must not be passed.
    """

    name: str
    title: str
    mode: str
    alpn: str
    backend: str
    threads: int
    amount: int
    per: float
    unit: str
    bar: float | None = None
    mutual: bool = False
    passed: bool = False


WORKS = (
    Work("hs", "TLS 1.3 full handshake, connect, one echo", "hs", SSH, "echo", 8, 2000, 1, "us", bar=1.25),
    Work("audit", "the same, with an audit event on disk first", "hs", AUDITED, "echo", 8, 1000, 1, "us"),
    Work("audit64", "the same, 64 at once", "hs", AUDITED, "echo", 64, 2000, 1, "us"),
    Work("mtls", "with a client certificate, identity read", "hs", DATABASE, "echo", 8, 1000, 1, "us", mutual=True),
    Work("up", "client to backend, per GB", "up", SSH, "sink", 2, GB, GB, "s", bar=1.0),
    Work("down", "backend to client, per GB", "down", SSH, "source", 2, GB, GB, "s", bar=1.0),
    Work("pp", "64-byte round trip, 16 connections", "pp", SSH, "echo", 16, 30000, 1, "us"),
    Work("pass", "passed through untouched, connect, one echo", "hs", AUTH, "echo", 8, 3000, 1, "us", passed=True),
    Work("pass-up", "passed through, to the backend, per GB", "up", AUTH, "sink", 2, GB, GB, "s", passed=True),
    Work("pass-down", "passed through, from it, per GB", "down", AUTH, "source", 2, GB, GB, "s", passed=True),
)
MEMORY_BAR = 20.0  # KiB per idle connection


def spent(pid: int) -> float:
    """Processor time of a process so far, seconds: its threads' run time from /proc, in nanoseconds there."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def resident(pid: int) -> int:
    """Resident memory, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def load(work: Work, rival: Rival, amount: int) -> list[str]:
    """The command line of one load."""
    port = rival.ports.mutual if work.mutual else rival.ports.passed if work.passed else rival.ports.tls
    return [
        *("taskset", "-c", LOAD_CORE, str(BUILD / "tlsload"), work.mode, str(port), work.alpn),
        *(f"{work.backend}.localhost", str(work.threads), str(amount)),
    ]


def environment(work: Work, files: pki.Pki) -> dict[str, str]:
    """What tlsload is told by its environment."""
    extra = {"CERT": str(files.user_certificate), "KEY": str(files.user_key)} if work.mutual else {}
    return {**os.environ, **extra, **({"HELLO": "1"} if work.passed else {})}


def measure(work: Work, rival: Rival, files: pki.Pki, scale: float) -> float:
    """Processor time of one round of `work`, in its unit."""
    amount = max(int(work.amount * scale), work.threads)
    before = spent(rival.process.pid)
    command = load(work, rival, amount)
    done = subprocess.run(
        command, env=environment(work, files), capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: {work.name} against {rival.name}: {done.stderr.strip()}")
    seconds = spent(rival.process.pid) - before
    return seconds / (amount / work.per) * (1e6 if work.unit == "us" else 1)


def idle_memory(rival: Rival, files: pki.Pki) -> float:
    """Resident memory per connection that has echoed once and is held open, KiB."""
    work = next(work for work in WORKS if work.name == "hs")
    measure(work, rival, files, 0.1)
    before = resident(rival.process.pid)
    command = load(work, rival, IDLE)
    command[command.index("hs")] = "hold"
    with subprocess.Popen([*command, "600"], stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout is not None
        if holding.stdout.readline().strip() != "holding":
            raise SystemExit(f"bench: {rival.name} did not hold {IDLE} connections")
        grown = resident(rival.process.pid) - before
        holding.kill()
    return grown / IDLE / 1024


def run(names: list[str], works: list[Work], rounds: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Every figure of every round: results[work][rival]."""
    results: dict[str, dict[str, list[float]]] = {}

    def note(work: str, rival: str, value: float) -> None:
        results.setdefault(work, {}).setdefault(rival, []).append(value)
        print(f"  {work:10} {rival:9} {value:9.3f}", file=sys.stderr)

    files = pki.make(BUILD / "pki")
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        first = rivals.free_ports(3)
        backends = subprocess.Popen(["taskset", "-c", LOAD_CORE, str(BUILD / "backends"), str(first)])
        running: list[Rival] = []
        try:
            running.extend(rivals.start(name, files, folder, first) for name in names)
            for rival in running:
                note("memory", rival.name, idle_memory(rival, files))
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
                for work in works:
                    for rival in running[number % len(running) :] + running[: number % len(running)]:
                        note(work.name, rival.name, measure(work, rival, files, scale))
        finally:
            for rival in running:
                rival.stop()
            backends.terminate()
            backends.wait(10)
    return results


def table(results: dict[str, dict[str, list[float]]], names: list[str]) -> list[list[str]]:
    """Header and rows: medians, and monoport's ratio to HAProxy beside its bar."""
    rows = [["work", *names, "to HAProxy", "bar"]]
    memory = Work("memory", "memory of an idle connection", "", "", "", 0, 0, 1, "KiB")
    for work in (*WORKS, memory):
        if work.name not in results:
            continue
        medians = {name: statistics.median(values) for name, values in results[work.name].items()}
        form: Callable[[float], str] = {"us": "{:.0f} us", "s": "{:.2f} s", "KiB": "{:.1f} KiB"}[work.unit].format
        ratio = to_haproxy(results[work.name])
        bar = "20 KiB" if work is memory else f"{work.bar:.2f}" if work.bar else ""
        cells = [form(medians[name]) if name in medians else "-" for name in names]
        rows.append([work.title, *cells, f"{ratio:.2f}" if ratio else "-", bar])
    return rows


def to_haproxy(values: dict[str, list[float]]) -> float | None:
    """The median of the rounds' ratios: what a neighbour takes in one round, it takes from both."""
    if not {"monoport", "haproxy"} <= values.keys():
        return None
    return statistics.median(ours / theirs for ours, theirs in zip(values["monoport"], values["haproxy"], strict=True))


def aligned(rows: list[list[str]]) -> str:
    """The table for a terminal and for Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if not at else ":") for at, width in enumerate(widths)) + "|"
    return "\n".join((line(rows[0]), rule, *(line(row) for row in rows[1:])))


def passed(results: dict[str, dict[str, list[float]]]) -> list[str]:
    """The bars that were not met."""
    failed = []
    for work in WORKS:
        values = results.get(work.name, {})
        if work.bar:
            ratio = to_haproxy(values)
            if ratio is not None and ratio > work.bar:
                failed.append(f"{work.title}: {ratio:.2f} of HAProxy, bar {work.bar:.2f}")
    memory = results.get("memory", {}).get("monoport", [0.0])
    if statistics.median(memory) > MEMORY_BAR:
        failed.append(f"memory of an idle connection: {statistics.median(memory):.1f} KiB, bar {MEMORY_BAR:.0f} KiB")
    return failed


def facts() -> str:
    """What the figures depend on, without a path or name of this machine."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = [f"Python {platform.python_version()}", ssl.OPENSSL_VERSION.rsplit(" ", 3)[0]]
    for command in (["haproxy", "-v"], ["nginx", "-v"]):
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        versions.append((said.stdout or said.stderr).splitlines()[0].split(" 20")[0].replace("nginx version: ", ""))
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}; {'; '.join(versions)}"


def write(text: str, rounds: int) -> None:
    """Keep the last table in the documentation."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(f"""# Benchmarks

The last table of `make bench`: processor time that the proxy spends on the same load, medians of {rounds} alternating
rounds in one run. Each proxy has one core, the load generator and the backends the other. monoport is the data plane
as the daemon runs it (listener, routing, limits, deadlines, identity, registry, counters, a log line per connection),
with `bench/door.py` dialling a TCP backend in place of a tunnel. Two rows add what every session of a user has besides:
an audit event, on disk before the session goes on; HAProxy and nginx have no such thing, and do there what they do in
the first row. With 8 connections at once the disk sets the pace, and what is not busy costs more per connection; 64 at
once share syncs and keep it busy. HAProxy and nginx run with their defaults, without
logging, and without reading more of a client certificate than its subject.

{text}

Measured on {facts()}.

What the design owes to measurements, and what was measured and rejected, is in
[decisions/0001-data-plane.md](decisions/0001-data-plane.md).
""")


def main() -> int:
    """Run what was asked for; 1 when a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts per round")
    parser.add_argument("--only", default="monoport,haproxy,nginx")
    parser.add_argument("--work", default=",".join(work.name for work in WORKS))
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    asked = parser.parse_args()
    compile_load()
    lacks = rivals.missing()
    names = [name for name in asked.only.split(",") if name not in lacks]
    for name, remedy in lacks.items():
        print(f"bench: {name} is missing and skipped; `{remedy}` would bring it", file=sys.stderr)
    works = [work for work in WORKS if work.name in asked.work.split(",")]
    results = run(names, works, asked.rounds, asked.scale)
    text = aligned(table(results, names))
    print(text)
    if not asked.no_write:
        write(text, asked.rounds)
    failed = passed(results)
    for line in failed:
        print(f"bench: bar not met: {line}", file=sys.stderr)
    return 1 if failed else 0


def compile_load() -> None:
    """Build the load generator and the backends."""
    BUILD.mkdir(exist_ok=True)
    for name, libraries in (("tlsload", ["-lssl", "-lcrypto"]), ("backends", [])):
        try:
            subprocess.run(
                ["cc", "-O2", "-Wall", "-o", str(BUILD / name), str(HERE / f"{name}.c"), *libraries, "-lpthread"],
                check=True,
            )
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"bench: {name}.c does not compile, apt-get install gcc libssl-dev? ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
