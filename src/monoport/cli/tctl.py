"""`tctl`, the administrator's command: runs beside the auth service and talks to it through its socket.

Belongs here: the command itself, its groups, and the cluster's status. The groups' commands are in `tctl_*`.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from monoport.auth.client import AuthClient
from monoport.auth.messages import Status
from monoport.cli import tctl_certificates, tctl_front, tctl_people, tctl_recordings, tctl_resources
from monoport.cli.beside import DEFAULT_CONFIG, Beside, pass_beside
from monoport.cli.run import Group, run, warn
from monoport.cli.tables import TABLES, Column, document, format_option, plain, printable, show
from monoport.errors import Failure


@click.group("tctl", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="monoport", message="%(version)s")
@click.option(
    "-c",
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    envvar="MONOPORT_CONFIG",
    help="The configuration of the daemon that runs the auth service.",
)
@click.pass_context
def tctl(context: click.Context, file: Path) -> None:
    """Administer a monoport cluster, beside its auth service."""
    context.obj = Beside(file)


@tctl.command()
@format_option
@pass_beside
def status(beside: Beside, output: str) -> None:
    """Show the cluster, its CA pin and what is in it."""

    async def ask(client: AuthClient) -> Status:
        return await client.status()

    found = beside.ask(ask)
    logs = _audit_logs(beside)
    if output not in TABLES:
        click.echo(document(plain({**found.model_dump(), "audit": logs}), output), nl=False)
        return
    click.echo(f"Cluster   {printable(found.cluster)}")
    click.echo(f"Version   {printable(found.version)}")
    for pin in found.ca_pins:
        click.echo(f"CA pin    {printable(pin)}")
    words = {"user": "user", "role": "role", "node": "node", "db": "database", "token": "token", "lock": "lock"}
    counts = {word: found.counts.get(kind, 0) for kind, word in words.items()}
    click.echo("Counts    " + ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items()))
    for line in _audit_lines(logs):
        click.echo(f"Audit     {printable(line)}")
    click.echo()
    rows = [{**one, "expires": datetime.fromisoformat(one["expires"])} for one in found.authorities]
    show(rows, [Column("Authority", "kind"), Column("Valid until", "expires")])


def _audit_logs(beside: Beside) -> dict[str, Any] | None:
    """How the audit logs of the daemon's roles are; None if it cannot be asked, while its auth service answers."""
    try:
        logs: dict[str, Any] = beside.ask_daemon("/health")["audit"]
    except Failure as error:
        warn(str(error))
        return None
    return logs


def _audit_lines(logs: dict[str, Any] | None) -> Iterator[str]:
    if logs is None:
        yield "unknown"
        return
    failing = {role: one for role, one in logs.items() if one["problem"] or one["lost"]}
    if not failing:
        yield "every event is kept"
    for role, one in failing.items():
        if one["problem"]:
            follows = "sessions go on UNRECORDED" if one["on_failure"] == "continue" else "new sessions are refused"
            yield f"{role}: {one['problem']}: {follows}"
        if one["waiting"] or one["lost"]:
            yield f"{role}: {one['waiting']} events wait in memory, {one['lost']} are lost"


tctl.add_command(tctl_people.users)
tctl.add_command(tctl_people.tokens)
tctl.add_command(tctl_resources.create)
tctl.add_command(tctl_resources.get)
tctl.add_command(tctl_resources.rm)
tctl.add_command(tctl_resources.nodes)
tctl.add_command(tctl_resources.db)
tctl.add_command(tctl_resources.lock)
tctl.add_command(tctl_certificates.auth)
tctl.add_command(tctl_front.events)
tctl.add_command(tctl_recordings.recordings)
tctl.add_command(tctl_front.route)
tctl.add_command(tctl_front.conns)


def main() -> None:
    """The console script."""
    run(tctl)
