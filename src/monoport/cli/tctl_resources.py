"""`tctl create|get|rm|nodes|db|lock`: resources as documents and as listings.

Belongs here: options and words of these commands.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from monoport.access.resources import (
    KINDS,
    Database,
    Lock,
    LockSpec,
    LockTarget,
    Metadata,
    Node,
    Resource,
    parse_document,
    to_document,
)
from monoport.auth.client import AuthClient
from monoport.cli.beside import Beside, pass_beside
from monoport.cli.options import DURATION
from monoport.cli.run import Group, warn
from monoport.cli.tables import TABLES, Column, document, format_option, printable, show
from monoport.errors import Failure

MAX_FILE = 1024 * 1024  # octets of a file of resources, as the auth service takes them
_ALIASES = {"database": "db", "databases": "db", "dbs": "db", **{f"{kind}s": kind for kind in KINDS}}


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("-f", "--force", is_flag=True, help="Replace what exists.")
@pass_beside
def create(beside: Beside, file: Path, force: bool) -> None:
    """Create the resources in FILE (YAML; - is standard input)."""
    resources = _read(file)

    async def store(client: AuthClient) -> None:
        for resource in resources:
            await client.create(resource, force)
            name = "" if resource.kind == "token" else f"/{resource.name}"
            click.echo(f"{resource.kind}{printable(name)} {'written' if force else 'created'}")

    beside.ask(store)


@click.command()
@click.argument("what", metavar="KIND[/NAME]")
@format_option
@pass_beside
def get(beside: Beside, what: str, output: str) -> None:
    """Print resources as documents that `create` takes."""
    kind, name = _parse(what)

    async def ask(client: AuthClient) -> list[Resource]:
        return [await client.get(kind, name)] if name else await client.list(kind)

    documents = [to_document(resource) for resource in beside.ask(ask)]
    if output in TABLES:
        click.echo("---\n".join(document(one, "yaml") for one in documents), nl=False)
    else:
        click.echo(document(documents, output), nl=False)


@click.command()
@click.argument("what", metavar="KIND/NAME")
@pass_beside
def rm(beside: Beside, what: str) -> None:
    """Remove one resource.

    db/NAME stays away until its agent is restarted or tctl db allow NAME, and is free for agents of other tokens.
    node/NAME and node/HOST-ID remove the host itself, of any kind, which then has to join again, and free its name.
    """
    kind, name = _parse(what)
    if not name:
        raise Failure(f"expected KIND/NAME, such as {kind}/example")

    async def remove(client: AuthClient) -> None:
        await client.delete(kind, name)

    beside.ask(remove)
    click.echo(f"{kind}/{printable(name)} removed")
    if kind == "db":
        warn("agents that run take no new sessions for it within 15 s; a restart brings it back if still configured,")
        warn(f"and tctl db allow {printable(name)} without one")


@click.group(cls=Group)
def nodes() -> None:
    """SSH nodes."""


@nodes.command("ls")
@format_option
@pass_beside
def nodes_ls(beside: Beside, output: str) -> None:
    """List the nodes that are there."""

    async def ask(client: AuthClient) -> list[Resource]:
        return await client.list("node")

    rows = [
        {"name": node.spec.hostname, "id": node.spec.host_id, "labels": node.metadata.labels}
        for node in beside.ask(ask)
        if isinstance(node, Node)
    ]
    columns = [Column("Node", "name", "bold", whole=True), Column("Id", "id", rank=2, whole=True)]
    show(rows, [*columns, Column("Labels", "labels", rank=1)], output)


@click.group(cls=Group)
def db() -> None:
    """Databases."""


@db.command("ls")
@format_option
@pass_beside
def db_ls(beside: Beside, output: str) -> None:
    """List the databases that are there."""

    async def ask(client: AuthClient) -> list[Resource]:
        return await client.list("db")

    rows = [
        {
            "name": one.name,
            "protocol": one.spec.protocol,
            "state": one.spec.state,
            "problem": one.spec.problem,
            "version": one.spec.server_version,
            "labels": one.metadata.labels,
            "host_id": one.spec.host_id,
            "description": one.metadata.description,
        }
        for one in beside.ask(ask)
        if isinstance(one, Database)
    ]
    if output in TABLES:
        rows = [
            {**row, "state": f"{row['state']}: {row['problem']}" if row["problem"] else row["state"]} for row in rows
        ]
    columns = [Column("Database", "name", "bold", whole=True), Column("Protocol", "protocol", rank=1)]
    columns += [Column("Version", "version", rank=3), Column("State", "state"), Column("Labels", "labels", rank=2)]
    columns += [Column("Agent", "host_id", rank=4, whole=True)]
    show(rows, columns, output)


@db.command("allow")
@click.argument("name")
@pass_beside
def db_allow(beside: Beside, name: str) -> None:
    """Let running agents serve a removed database again."""

    async def ask(client: AuthClient) -> None:
        await client.databases_allow(name)

    beside.ask(ask)
    click.echo(f"db/{printable(name)} is allowed: agents that have it register it within 15 s")


@click.command()
@click.option("--user", help="Lock a user.")
@click.option("--role", help="Lock everybody who has this role.")
@click.option("--node", help="Lock a node by name or id, or another host by id.")
@click.option("--login", help="Lock a login on every node.")
@click.option("--ttl", type=DURATION, help="For how long; until it is removed if not given.")
@click.option("--message", default="", help="Why, for other administrators.")
@pass_beside
def lock(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside,
    user: str | None,
    role: str | None,
    node: str | None,
    login: str | None,
    ttl: timedelta | None,
    message: str,
) -> None:
    """End and refuse every session of a user, a role, a node or a login."""
    targets = {"user": user, "role": role, "node": node, "login": login}
    given = [(kind, name) for kind, name in targets.items() if name is not None]
    if len(given) != 1:
        raise Failure("expected exactly one of --user, --role, --node, --login")
    kind, target = given[0]
    expires = None if ttl is None else datetime.now(UTC) + ttl
    name = f"{kind}-{target}".replace("/", "-")
    made = parse_document(
        to_document(
            Lock(
                metadata=Metadata(name=name, expires=expires),
                spec=LockSpec(target=LockTarget.model_validate({kind: target}), message=message, expires=expires),
            )
        )
    )

    async def store(client: AuthClient) -> bool:
        await client.create(made, force=True)
        return kind in {"user", "role"} and target not in {one.name for one in await client.list(kind)}

    if beside.ask(store):
        warn(f"there is no {kind} {target} now; the lock holds for certificates that still say so")
    until = "until it is removed" if expires is None else f"until {expires:%Y-%m-%d %H:%M:%S} UTC"
    click.echo(f"{kind} {printable(target)} locked {until}; lift it with: tctl rm lock/{printable(name)}")


def _read(file: Path) -> list[Resource]:
    source = "standard input" if str(file) == "-" else str(file)
    data = sys.stdin.buffer.read(MAX_FILE + 1) if str(file) == "-" else file.read_bytes()[: MAX_FILE + 1]
    if len(data) > MAX_FILE:
        raise Failure(f"{source} is larger than {MAX_FILE} octets")
    try:
        documents = [one for one in YAML(typ="safe", pure=True).load_all(data.decode()) if one is not None]
    except UnicodeDecodeError:
        raise Failure(f"{source} is not UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark is not None else source
        raise Failure(f"{where}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    if not documents:
        raise Failure(f"{source} holds no resource")
    try:
        return [parse_document(one) for one in documents]
    except Failure as error:
        raise Failure(f"{source}: {error}") from None


def _parse(what: str) -> tuple[str, str]:
    kind, _, name = what.partition("/")
    kind = _ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise Failure(f"no resources of kind {printable(kind)}: expected one of {', '.join(KINDS)}")
    return kind, name
