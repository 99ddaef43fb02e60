"""`tsh proxy all` on a screen: lines to paste, and below them a table that follows what happens; without a terminal, a
line for each change.

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
            said: dict[str, str] = {}
            while True:
                for name, end in sorted(ends.items()):
                    if end.address and said.get(name) != end.use:
                        said[name] = end.use
                        live.console.print(_line(name, end.use), soft_wrap=True)
                live.update(_table(title, ends), refresh=True)
                await asyncio.sleep(TICK)

        yield draw


def _line(name: str, use: str) -> Any:
    """A line to paste, above the table: in one of its cells it would be folded, and be pasted with the folds."""
    from rich.text import Text

    return Text.assemble((printable(name), "bold"), GAP, printable(use))


async def _lines(ends: Mapping[str, Any]) -> None:
    """One line for each end that begins or stops listening, or with which something else is wrong."""
    said: dict[str, tuple[str, str]] = {}
    while True:
        for name, end in ends.items():
            address, wrong = said.get(name, ("", ""))
            now = end.wrong if end.address else end.problem  # a server that is down is told once its end is there
            if end.address and (address != end.address or (wrong and not now)):
                _say(name, end, end.use)
            if now and (wrong != now or (address and not end.address)):
                _say(name, end, now)
            said[name] = (end.address, now)
        for name in [name for name in said if name not in ends]:
            del said[name]
            click.echo(f"{printable(name)}{GAP}is gone")
        await asyncio.sleep(TICK)


def _say(name: str, end: Any, words: str) -> None:
    parts = (name, end.protocol, end.address or "not open", words)
    click.echo(GAP.join(printable(part) for part in parts if part))


def _table(title: str, ends: Mapping[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("Database", "Protocol", "Listening on", "Connections", "State"):
        table.add_column(
            name, justify="right" if name == "Connections" else "left", overflow="fold", no_wrap=name != "State"
        )
    for name, end in sorted(ends.items()):
        state = Text(printable(end.wrong), style="red") if end.wrong else Text(printable(end.state))
        where = (
            Text(printable(end.address)) if end.address else Text("opening" if not end.problem else "-", style="dim")
        )
        cells = (Text(printable(name), style="bold"), Text(printable(end.protocol)), where, Text(str(end.connections)))
        table.add_row(*cells, state)
    # Not the table's own title, which would be folded to the width of the rows that there are.
    return Group(Text(f"{printable(title)}; whoever connects here acts as you; Ctrl-C ends it", style="dim"), table)
