"""`monoport demo --check`: run every printed command, and show what reached what.

Belongs here: running the lines in a shell, reading the front door's log for what arrived, and the table of both.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from monoport.daemon.demo.cluster import Cluster
from monoport.daemon.demo.commands import Command, Commands
from monoport.daemon.demo.shell import Shell
from monoport.errors import Failure

COMMAND_SECONDS = 60.0  # the slowest, a login, takes one or two
LOG_SECONDS = 2.0  # a connection's line is written when it ends, a moment after the command did
SHOWN = 44  # characters of a command in the table
SHARES = {"command": 0.36, "ALPN": 0.27, "SNI": 0.2, "reached": 0.17}  # of what seconds and outcome leave


@dataclass(slots=True)
class Outcome:
    """What became of one command, and what arrived at the one port meanwhile."""

    command: Command
    problem: str
    seconds: float
    arrived: list[tuple[str, str, str]] = field(default_factory=list)  # ALPN, SNI, where to


def check_all(console: Console, cluster: Cluster, commands: Commands) -> bool:
    """Run every command, print the table, and return whether all worked."""
    outcomes = []
    for outcome in _outcomes(cluster, commands):
        mark = "[red]✗[/]" if outcome.problem else "[green]✓[/]"
        console.print(f"  {mark} ", end="")
        console.print(outcome.command.line[:100], markup=False, style="dim")
        outcomes.append(outcome)
    console.print()
    console.print(_table(outcomes, console.width))
    failed = [outcome for outcome in outcomes if outcome.problem]
    for outcome in failed:
        console.print(f"\n[red]failed:[/] {outcome.command.line}", soft_wrap=True)
        console.print(outcome.problem, markup=False)
    console.print(
        f"\n{len(outcomes) - len(failed)} of {len(outcomes)} commands worked, all through port {cluster.port}."
    )
    return not failed


def _outcomes(cluster: Cluster, commands: Commands) -> Iterator[Outcome]:
    """Paste every line into a shell as a new terminal has it; where one kills the shell, what follows gets another."""
    new = {key: value for key, value in os.environ.items() if key not in {"TSH_HOME", "SSH_AUTH_SOCK"}}
    waiting = deque(commands.all())
    while waiting:
        with Shell(new) as shell:
            for command in commands.setup():
                done = shell.run(command.line, COMMAND_SECONDS)
                if done.status != 0:
                    raise Failure(f"the line `{command.line}` failed: {done.output.strip()}")
            ended = False
            while waiting and not ended:
                outcome, ended = _run(cluster.processes[0].log, waiting.popleft(), shell)
                yield outcome


def _run(log: Path, command: Command, shell: Shell) -> tuple[Outcome, bool]:
    """What became of a command, and whether it was the shell's end."""
    before = log.stat().st_size
    began = time.monotonic()
    done = shell.run(command.line, COMMAND_SECONDS)
    seconds = time.monotonic() - began
    if done.status is None:
        return Outcome(command, done.output, seconds), True
    problem = ""
    if done.status:
        problem = f"exit status {done.status}: {done.output.strip()[-500:]}"
    elif command.expect not in done.output:
        problem = f"{command.expect!r} is not in its output: {done.output.strip()[-500:]}"
    return Outcome(command, problem, seconds, _arrivals(log, before) if command.arrives else []), False


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


def _table(outcomes: list[Outcome], width: int) -> Table:
    gap, taken, outcome_width = 2, len("seconds"), len("failed")
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    room = width - taken - outcome_width - gap * (len(SHARES) + 2)
    for name, share in SHARES.items():
        table.add_column(name, no_wrap=True, max_width=max(len(name), int(room * share)))
    table.add_column("seconds", justify="right", no_wrap=True, min_width=taken)
    table.add_column("", no_wrap=True, min_width=outcome_width)
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
