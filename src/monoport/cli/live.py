"""`tsh proxy all` on a screen: a table that follows what happens; without a terminal, a line for each change.

Belongs here: how it looks. Does not belong here: what the rows are (`client/everything.py`).
"""
# ruff: noqa: PLC0415 - the libraries that draw are imported when they are needed, as in tables.py

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from monoport.cli.tables import GAP, printable

TICK = 0.5  # seconds between two looks: what people take for at once

Show = Callable[[Mapping[str, Any]], Awaitable[None]]


@contextmanager
def shown(title: str) -> Iterator[Show]:
    """What shows the local ends, by name, for as long as the body runs."""
    if not sys.stdout.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False, markup=False, emoji=False), auto_refresh=False) as live:

        async def draw(ends: Mapping[str, Any]) -> None:
            while True:
                live.update(_table(title, ends), refresh=True)
                await asyncio.sleep(TICK)

        yield draw


async def _lines(ends: Mapping[str, Any]) -> None:
    """One line for each end that begins or stops listening, or whose problem is another."""
    said: dict[str, tuple[str, str]] = {}
    while True:
        for name, end in ends.items():
            now = (end.address, end.problem)
            if said.get(name, ("", "")) != now:
                said[name] = now
                words = (name, end.protocol, end.address or "not open", end.problem or end.use)
                click.echo(GAP.join(printable(word) for word in words if word))
        for name in [name for name in said if name not in ends]:
            del said[name]
            click.echo(f"{printable(name)}{GAP}is gone")
        await asyncio.sleep(TICK)


def _table(title: str, ends: Mapping[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("Database", "Protocol", "Listening on", "Connections", "Connect with, or what is wrong"):
        table.add_column(name, justify="right" if name == "Connections" else "left", overflow="fold")
    for name, end in sorted(ends.items()):
        state = Text(printable(end.problem), style="red") if end.problem else Text(printable(end.use))
        where = (
            Text(printable(end.address)) if end.address else Text("opening" if not end.problem else "-", style="dim")
        )
        cells = (Text(printable(name), style="bold"), Text(printable(end.protocol)), where, Text(str(end.connections)))
        table.add_row(*cells, state)
    # Not the table's own title, which would be folded to the width of the rows that there are.
    return Group(Text(f"{printable(title)}; whoever connects here acts as you; Ctrl-C ends it", style="dim"), table)
