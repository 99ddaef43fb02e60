"""`tctl recordings`: recorded sessions, for whoever keeps them.

Belongs here: options and words of these commands. Playing is `tsh play`.
"""

from pathlib import Path
from typing import Any

import click

from monoport.auth.client import AuthClient
from monoport.cli.beside import Beside, pass_beside
from monoport.cli.run import Group
from monoport.cli.tables import format_option
from monoport.cli.tsh_recordings import show_recordings
from monoport.client.recordings import fetch, listing


@click.group(cls=Group)
def recordings() -> None:
    """Recorded sessions."""


@recordings.command("ls")
@click.option("--user", metavar="NAME", default="", help="Only this user's sessions.")
@click.option("--node", metavar="NAME", default="", help="Only sessions on this server, by name or id.")
@click.option("--since", metavar="TIME", default="", help="Only those begun since: 8h, 7d, or a date as 2030-01-31.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most.")
@format_option
@pass_beside
def recordings_ls(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside, user: str, node: str, since: str, limit: int, output: str
) -> None:
    """List recordings, the newest first."""

    async def ask(client: AuthClient) -> list[dict[str, Any]]:
        return await listing(client, client.cluster, user=user, node=node, since=since, limit=limit)

    show_recordings(beside.ask(ask), output)


@recordings.command("export")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Where to; ID.cast if not given.")
@click.argument("recording", metavar="ID")
@pass_beside
def recordings_export(beside: Beside, out: Path | None, recording: str) -> None:
    """Write a recording to a file, as asciicast: tsh play FILE plays it."""
    path = out or Path(f"{Path(recording).name}.cast")

    async def ask(client: AuthClient) -> None:
        await client.recording(recording)  # before a file is made
        with path.open("xb") as file:
            try:
                await fetch(client, recording, file)
            except BaseException:
                path.unlink()
                raise

    beside.ask(ask)
    click.echo(f"written to {path}")


@recordings.command("rm")
@click.argument("recording", metavar="ID")
@pass_beside
def recordings_rm(beside: Beside, recording: str) -> None:
    """Delete a recording for good."""

    async def ask(client: AuthClient) -> None:
        await client.recording_remove(recording)

    beside.ask(ask)
    click.echo(f"recording {recording} deleted")
