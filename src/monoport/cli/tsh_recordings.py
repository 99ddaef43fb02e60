"""`tsh recordings|play`: recorded sessions, listed and shown.

Belongs here: options and words of these commands. No logic: that is in `client/`.
"""
# ruff: noqa: PLC0415, PLR0917 - as in `cli.tsh`

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from monoport.cli.run import Group
from monoport.cli.tsh_options import format_option, proxy_option
from monoport.client.profile import Home

if TYPE_CHECKING:
    from monoport.audit.asciicast import Header
    from monoport.client.replay import Recording

_DUMP = click.Choice(("text", "json"))


@click.group(cls=Group)
def recordings() -> None:
    """Recorded sessions."""


@recordings.command("ls")
@proxy_option
@click.option("--user", metavar="NAME", default="", help="Only this user's sessions.")
@click.option("--node", metavar="NAME", default="", help="Only sessions on this server, by name or id.")
@click.option("--since", metavar="TIME", default="", help="Only those begun since: 8h, 7d, or a date as 2030-01-31.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most.")
@format_option
def recordings_ls(proxy: str | None, user: str, node: str, since: str, limit: int, output: str) -> None:
    """List recordings, the newest first: your own, and with the right to it (role auditor) everybody's."""
    from monoport.cli.progress import wait_noting
    from monoport.client.authapi import auth_client
    from monoport.client.recordings import listing

    home = Home.of()
    profile = home.choose(proxy)

    async def ask() -> list[dict[str, Any]]:
        async with auth_client(home, profile) as client:
            return await listing(client, profile.cluster, user=user, node=node, since=since, limit=limit)

    show_recordings(wait_noting(ask(), f"asking {profile.proxy}"), output)


def show_recordings(rows: list[dict[str, Any]], output: str) -> None:
    """Prints recordings, as `tsh` and `tctl` do."""
    from monoport.cli.tables import TABLES, Column, ago, show, size

    if output in TABLES:
        rows = [{**row, "length": ago(row["seconds"]), "octets": size(row["size"])} for row in rows]
    columns = (
        Column("Id", "id", "bold", whole=True),
        Column("User", "user"),
        Column("Login", "login", rank=2),
        Column("Node", "node"),
        Column("Started", "started", rank=1, whole=True),
        Column("Length", "length", rank=3),
        Column("Size", "octets", rank=4),
    )
    show(rows, columns, output)


@click.command(short_help="Play a recorded session.")
@proxy_option
@click.option("--speed", type=click.FloatRange(1 / 16, 1024), default=1.0, show_default=True, help="Times as fast.")
@click.option("--idle", metavar="SECONDS", type=click.FloatRange(0, min_open=True), help="No pause longer than that.")
@click.option("--format", "output", type=_DUMP, help="Print it instead; text where the output is no terminal.")
@click.argument("recording", metavar="ID|FILE")
def play(proxy: str | None, speed: float, idle: float | None, output: str | None, recording: str) -> None:
    """Play a recorded session, by its id or from a local .cast file.

    Keys: space pauses, left and right move 5 s, 0 to 9 jump to a tenth, comma and period show single events,
    + and - change the speed, q ends.
    """
    from monoport.cli.progress import wait_noting
    from monoport.client.player import play as play_on
    from monoport.client.player import taken
    from monoport.client.playhead import Playhead
    from monoport.client.recordings import opened
    from monoport.client.replay import Recording

    wanted = output or ("" if sys.stdout.isatty() else "text")
    with wait_noting(opened(Home.of(), proxy, recording), "fetching the recording") as file:
        found = Recording(file)
        if wanted:
            for part in _dumped(found, wanted):
                sys.stdout.write(part)
            return
        with taken() as terminal:
            _announce(found.header, len(found))
            play_on(found, Playhead(found.times, speed, idle), terminal)


def _announce(header: "Header", events: int) -> None:
    import os

    from monoport.cli.tables import printable
    from monoport.client.player import KEYS

    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    lines = [f"{printable(header.title or 'recording')}: {KEYS}"]
    if (columns, rows) != (header.width, header.height):
        lines.append(f"recorded on {header.width}x{header.height}, this terminal has {columns}x{rows}")
    if not events:
        lines.append("nothing was shown in this session")
    for line in lines:
        sys.stderr.write(f"{line}\r\n")
    sys.stderr.flush()


def _dumped(found: "Recording", output: str) -> Iterator[str]:
    """The recording for other programs: its text, or one JSON object in ASCII."""
    import json

    if output == "text":
        last = "\n"
        for last in found.text():
            yield last
        yield "" if last.endswith("\n") else "\n"
        return
    header = found.header
    facts = {"width": header.width, "height": header.height, "timestamp": header.timestamp, "title": header.title}
    yield json.dumps({**facts, "command": header.command, "session": dict(header.session)}, indent=2)[:-2]
    yield ',\n  "events": ['
    between = "\n    "
    for event in found.events():
        yield between + json.dumps([event.time, event.kind, event.data])
        between = ",\n    "
    yield "\n  ]\n}\n"
