"""`monoport demo --check`: run every printed command, and show what reached what.

Belongs here: running the lines in a shell, reading the front door's log for what arrived, and the table of both.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from monoport.daemon.demo.cluster import Cluster, environment
from monoport.daemon.demo.commands import Command, Commands
from monoport.errors import Failure

COMMAND_SECONDS = 60.0  # the slowest, a login, takes one or two
LOG_SECONDS = 2.0  # a connection's line is written when it ends, a moment after the command did
SHOWN = 44  # characters of a command in the table


@dataclass(slots=True)
class Outcome:
    """What became of one command, and what arrived at the one port meanwhile."""

    command: Command
    problem: str
    seconds: float
    arrived: list[tuple[str, str, str]] = field(default_factory=list)  # ALPN, SNI, where to


def check_all(console: Console, cluster: Cluster, commands: Commands) -> bool:
    """Run every command, print the table, and return whether all worked."""
    agent, process = _ssh_agent(cluster.root)
    outcomes = []
    try:
        for command in commands.all():
            outcome = _run(cluster, command, agent)
            mark = "[red]✗[/]" if outcome.problem else "[green]✓[/]"
            console.print(f"  {mark} ", end="")
            console.print(command.line[:100], markup=False, style="dim")
            outcomes.append(outcome)
    finally:
        process.terminate()
        process.wait()
    console.print()
    console.print(_table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.problem]
    for outcome in failed:
        console.print(f"\n[red]failed:[/] {outcome.command.line}", soft_wrap=True)
        console.print(outcome.problem, markup=False)
    console.print(
        f"\n{len(outcomes) - len(failed)} of {len(outcomes)} commands worked, all through port {cluster.port}."
    )
    return not failed


def _ssh_agent(root: Path) -> tuple[str, subprocess.Popen[bytes]]:
    program = shutil.which("ssh-agent")
    if program is None:
        raise Failure("ssh-agent is not installed: apt-get install openssh-client")
    path = root / "ssh-agent.sock"
    process = subprocess.Popen([program, "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    while not path.exists():
        if process.poll() is not None:
            raise Failure("ssh-agent did not start")
        select.select([], [], [], 0.02)
    return str(path), process


def _run(cluster: Cluster, command: Command, agent: str) -> Outcome:
    log = cluster.processes[0].log
    before = log.stat().st_size
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command.line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            env=environment(cluster, agent),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(command, f"no end within {COMMAND_SECONDS:g} s", COMMAND_SECONDS)
    seconds = time.monotonic() - began
    shown = (done.stdout + done.stderr).decode(errors="replace")
    problem = ""
    if done.returncode:
        problem = f"exit status {done.returncode}: {shown.strip()[-500:]}"
    elif command.expect not in shown:
        problem = f"{command.expect!r} is not in its output: {shown.strip()[-500:]}"
    return Outcome(command, problem, seconds, _arrivals(log, before) if command.arrives else [])


def _arrivals(log: Path, before: int) -> list[tuple[str, str, str]]:
    """What arrived at the port since the log was `before` bytes long, without the agents' own connections."""
    deadline = time.monotonic() + LOG_SECONDS
    found: list[tuple[str, str, str]] = []
    while time.monotonic() < deadline:
        again = _arrived(log, before)
        if again and again == found:
            break
        found = again
        select.select([], [], [], 0.1)
    return found


def _arrived(log: Path, before: int) -> list[tuple[str, str, str]]:
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode(errors="replace").splitlines()
    found: dict[tuple[str, str, str], None] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line of a library, or one that is being written
        if event.get("event") == "connection" and event.get("kind") not in {"tunnel", "dialback"}:
            found[str(event.get("alpn") or "-"), str(event.get("sni") or "-"), str(event.get("kind"))] = None
    return list(found)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("command", "ALPN", "SNI", "reached", "seconds", ""):
        table.add_column(name, justify="right" if name == "seconds" else "left", no_wrap=True)
    for outcome in outcomes:
        line = outcome.command.line
        shown = line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
        beside = "the daemon's own socket" if line.startswith("tctl") else ""
        first, *rest = outcome.arrived or [("", "", beside)]
        mark = "[red]failed[/]" if outcome.problem else "[green]ok[/]"
        table.add_row(shown.replace("[", "\\["), *first, f"{outcome.seconds:.2f}", mark)
        for arrived in rest:
            table.add_row("", *arrived, "", "")
    return table
