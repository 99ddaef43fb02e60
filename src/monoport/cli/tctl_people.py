"""`tctl users` and `tctl tokens`: who may sign in, and what may join.

Belongs here: options and words of these commands.
"""

from collections.abc import Mapping
from datetime import timedelta

import click

from monoport.access.resources import Resource, User
from monoport.auth.client import AuthClient
from monoport.auth.messages import TOKEN_TYPES, MadeToken, Token
from monoport.cli.agentconfig import agent_config
from monoport.cli.beside import Beside, pass_beside
from monoport.cli.newpassword import choose_password
from monoport.cli.options import DURATION, TRAIT, names_option
from monoport.cli.run import Group
from monoport.cli.tables import TABLES, Column, cell, document, format_option, plain, printable, show
from monoport.errors import Failure


@click.group(cls=Group)
def users() -> None:
    """Local users."""


@users.command("add")
@click.argument("name")
@names_option("--roles", default="access", metavar="R,..", help="What they may do.")
@names_option("--logins", metavar="L,..", help="Logins on nodes.")
@names_option("--db-users", metavar="U,..", help="Database users.")
@names_option("--db-names", metavar="D,..", help="Names within databases.")
@click.option("--traits", type=TRAIT, multiple=True, metavar="K=V,..", help="Values of {{external.K}} in roles.")
@click.option("--password-stdin", is_flag=True, help="Take the password from the first line of standard input.")
@pass_beside
def users_add(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside,
    name: str,
    roles: tuple[str, ...],
    logins: tuple[str, ...],
    db_users: tuple[str, ...],
    db_names: tuple[str, ...],
    traits: tuple[tuple[str, tuple[str, ...]], ...],
    password_stdin: bool,
) -> None:
    """Add the user NAME."""
    if not roles:
        raise Failure("--roles names no role: expected at least one, such as access")
    named = {"logins": logins or None, "db_users": db_users or None, "db_names": db_names or None}
    given = {trait: values for trait, values in _traits("--traits", traits, named).items() if values}
    beside.reach()
    password = choose_password(name, password_stdin)

    async def add(client: AuthClient) -> None:
        await client.users_add(name, roles, given, password)

    beside.ask(add)
    click.echo(f"user {printable(name)} added, roles: {cell(roles)}")


@users.command("update")
@click.argument("name")
@names_option("--set-roles", default=None, metavar="R,..", help="What they may do, from now on.")
@names_option("--set-logins", default=None, metavar="L,..", help="Logins on nodes.")
@names_option("--set-db-users", default=None, metavar="U,..", help="Database users.")
@names_option("--set-db-names", default=None, metavar="D,..", help="Names within databases.")
@click.option("--set-traits", type=TRAIT, multiple=True, metavar="K=V,..", help="Any trait; may be given repeatedly.")
@pass_beside
def users_update(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside,
    name: str,
    set_roles: tuple[str, ...] | None,
    set_logins: tuple[str, ...] | None,
    set_db_users: tuple[str, ...] | None,
    set_db_names: tuple[str, ...] | None,
    set_traits: tuple[tuple[str, tuple[str, ...]], ...],
) -> None:
    """Change roles and traits of the user NAME; what is not given stays.

    Each list is set anew; an empty one (--set-logins=, --set-traits=team=) removes the trait. If that takes anything
    away, running sessions end and the user has to sign in again. If it only adds, it counts from the next login on.
    """
    named = {"logins": set_logins, "db_users": set_db_users, "db_names": set_db_names}
    traits = _traits("--set-traits", set_traits, named)
    if set_roles is None and not traits:
        raise Failure(
            "nothing to change: expected --set-roles, --set-logins, --set-db-users, --set-db-names, --set-traits"
        )
    if set_roles == ():
        raise Failure("--set-roles names no role: expected at least one, such as access")

    async def update(client: AuthClient) -> bool:
        return await client.users_update(name, set_roles, traits)

    locked = beside.ask(update)
    when = "sessions end now, and the user has to sign in again" if locked else "it counts from the next tsh login on"
    click.echo(f"user {printable(name)} changed; {when}")


@users.command("ls")
@format_option
@pass_beside
def users_ls(beside: Beside, output: str) -> None:
    """List local users."""

    async def ask(client: AuthClient) -> list[Resource]:
        return await client.users_list()

    rows = [
        {"name": user.name, "roles": user.spec.roles, "traits": user.spec.traits}
        for user in beside.ask(ask)
        if isinstance(user, User)
    ]
    show(
        rows,
        [Column("User", "name", "bold", whole=True), Column("Roles", "roles"), Column("Traits", "traits", rank=1)],
        output,
    )


@users.command("rm")
@click.argument("name")
@pass_beside
def users_rm(beside: Beside, name: str) -> None:
    """Remove the user NAME; running sessions end."""

    async def remove(client: AuthClient) -> None:
        await client.users_remove(name)

    beside.ask(remove)
    click.echo(f"user {printable(name)} removed")


@users.command("reset")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Take the password from the first line of standard input.")
@pass_beside
def users_reset(beside: Beside, name: str, password_stdin: bool) -> None:
    """Set another password for NAME; ends the lock after failed logins too."""
    beside.reach()
    password = choose_password(name, password_stdin)

    async def reset(client: AuthClient) -> None:
        await client.users_reset(name, password)

    beside.ask(reset)
    click.echo(f"password of {printable(name)} set")


def _traits(
    option: str,
    pairs: tuple[tuple[str, tuple[str, ...]], ...],
    named: Mapping[str, tuple[str, ...] | None],
) -> dict[str, tuple[str, ...]]:
    """Every trait that options name, each by one option; raises Failure."""
    found = {trait: values for trait, values in named.items() if values is not None}
    for trait, values in pairs:
        if trait in found:
            raise Failure(f"{option}: the trait {printable(trait)} is set twice")
        found[trait] = values
    return found


@click.group(cls=Group)
def tokens() -> None:
    """Join tokens."""


@tokens.command("add")
@names_option("--type", "types", required=True, metavar="T,..", help=f"Of {', '.join(TOKEN_TYPES)}.")
@names_option("--db", metavar="D,..", help="Databases: its hosts serve these and no others.")
@names_option("--node", metavar="N,..", help="Nodenames: its hosts have these and no others.")
@click.option("--ttl", type=DURATION, default="30m", show_default=True, help="How long the token is good.")
@click.option("--value", metavar="T", help="The token itself, at least 8 characters; drawn if not given.")
@format_option
@pass_beside
def tokens_add(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside,
    types: tuple[str, ...],
    db: tuple[str, ...],
    node: tuple[str, ...],
    ttl: timedelta,
    value: str | None,
    output: str,
) -> None:
    """Make a token with which hosts join, and print what they need.

    The first host that registers a database or nodename owns it, together with the hosts that joined with the same
    token. Names given by --db or --node may be served even if other hosts own them.
    """
    unknown = [one for one in types if one not in TOKEN_TYPES]
    if unknown or not types:
        raise Failure(f"--type: {cell(unknown) or 'empty'}: expected some of {', '.join(TOKEN_TYPES)}")

    async def add(client: AuthClient) -> MadeToken:
        return await client.tokens_add(types, ttl, value, nodes=node, databases=db)

    made = beside.ask(add)
    if output not in TABLES:
        shown = {"token": made.token, "ca_pin": made.ca_pin, "types": made.types, "expires": made.expires}
        shown |= {"databases": made.databases} if made.databases else {}
        shown |= {"nodes": made.nodes} if made.nodes else {}
        click.echo(document(plain(shown), output), nl=False)
        return
    click.echo(f"Token    {printable(made.token)}")
    click.echo(f"CA pin   {printable(made.ca_pin)}")
    click.echo(f"Types    {cell(made.types)}")
    if made.databases:
        click.echo(f"For db   {cell(made.databases)}")
    if made.nodes:
        click.echo(f"For node {cell(made.nodes)}")
    click.echo(f"Expires  {cell(made.expires)}")
    click.echo("\nThe token is not shown again. Configuration of a host that joins with it:\n")
    click.echo(agent_config(made, beside.config), nl=False)


@tokens.command("ls")
@format_option
@pass_beside
def tokens_ls(beside: Beside, output: str) -> None:
    """List the tokens that are still good; their values are not kept."""

    async def ask(client: AuthClient) -> list[Token]:
        return await client.tokens_list()

    rows = [one.model_dump() for one in beside.ask(ask)]
    columns = [
        Column("Id", "id", "bold", whole=True),
        Column("Types", "types"),
        Column("Expires", "expires", whole=True),
    ]
    show(rows, [*columns, Column("Databases", "databases", rank=1), Column("Nodes", "nodes", rank=1)], output)


@tokens.command("rm")
@click.argument("token")
@pass_beside
def tokens_rm(beside: Beside, token: str) -> None:
    """Remove a token, named by its id or its value."""

    async def remove(client: AuthClient) -> None:
        await client.tokens_remove(token)

    beside.ask(remove)
    click.echo("token removed")
