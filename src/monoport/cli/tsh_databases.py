"""tsh's commands for databases: `tsh db …` and `tsh proxy db`.

Belongs here: options and words. No logic: that is in `client/`. Imports are inside the commands, as in tsh.py.
"""
# ruff: noqa: PLC0415, PLR0917 - click passes every option by its name

from pathlib import Path

import click

from monoport.cli.run import Group, wait, warn
from monoport.cli.tsh_options import format_option, proxy_option
from monoport.client.profile import Home


@click.command("db", short_help="A local port that leads to a database.")
@proxy_option
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65_535),
    help="A port of 127.0.0.1, 0 for any free one; one made of the database's name if not given.",
)
@click.option("--listen", "listen_on", metavar="ADDR:PORT", help="Listen there instead.")
@click.option(
    "--unix",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A Unix socket that only you can open. For PostgreSQL the folder of .s.PGSQL.<port>, for MongoDB a name that "
    "ends in .sock. Implies --tunnel.",
)
@click.option("--tunnel", is_flag=True, help="Present your certificate, so that clients connect without TLS.")
@click.option("--share-identity", is_flag=True, help="Let --tunnel listen beyond loopback: who connects is you.")
@click.option("--db-user", metavar="USER", default="", help="The database user to connect as.")
@click.option("--db-name", metavar="DATABASE", default="", help="The database inside it.")
@click.option(
    "--cert",
    "certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A PEM file whose certificate says which database, user and protocol; no NAME is needed then.",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its private key, if that is not in the same file.",
)
@click.argument("name", default="")
def proxy_db(
    proxy: str | None,
    port: int | None,
    listen_on: str | None,
    unix: Path | None,
    tunnel: bool,
    share_identity: bool,
    db_user: str,
    db_name: str,
    certificate: Path | None,
    key: Path | None,
    name: str,
) -> None:
    """A local port that leads to a database, until Ctrl-C. Prints how to connect to it."""
    from monoport.cli.tables import printable
    from monoport.client.databases import Wanted
    from monoport.client.forward import Forward, forward
    from monoport.client.front import Credentials

    if listen_on is not None and (port is not None or unix is not None):
        raise click.UsageError("--listen and -p or --unix exclude each other")
    if not name and certificate is None:
        raise click.UsageError("Missing argument 'NAME', or --cert")
    home = Home.of()
    wanted = Forward(
        Wanted(name, db_user, db_name),
        listen_on or ("" if port is None else f"127.0.0.1:{port}"),
        tunnel,
        share_identity,
        unix,
        port or 0,
        Credentials(certificate, key or certificate) if certificate is not None else None,
    )
    chosen = home.choose(proxy)
    wait(forward(home, chosen, wanted, announce=lambda line: click.echo(printable(line)), report=warn))


@click.command("all", short_help="A local port for each of your databases.")
@proxy_option
def proxy_all(proxy: str | None) -> None:
    """A local port for every database that you may use, until Ctrl-C.

    Clients connect without TLS and without a password, and act as you. Each database has the same port every time.
    Databases only: servers need no port (tsh ssh, tsh config).
    """
    from monoport.cli.live import shown
    from monoport.client.everything import everything

    home = Home.of()
    profile = home.choose(proxy)
    with shown(f"databases of {profile.cluster}, as {profile.user}") as show:
        wait(everything(home, profile, show))


@click.group(cls=Group)
def db() -> None:
    """Databases."""


@db.command("ls")
@proxy_option
@format_option
def db_ls(proxy: str | None, output: str) -> None:
    """The databases that you may use."""
    from monoport.cli.progress import wait_noting
    from monoport.cli.tables import TABLES, Column, show
    from monoport.client.databases import listing

    home = Home.of()
    profile = home.choose(proxy)
    rows = wait_noting(listing(home, profile), f"asking {profile.proxy}")
    if output in TABLES:
        rows = [
            {**row, "state": f"{row['state']}: {row['problem']}" if row["problem"] else row["state"]} for row in rows
        ]
    columns = (
        Column("Database", "name", "bold", whole=True),
        Column("Protocol", "protocol", rank=2),
        Column("State", "state"),
    )
    show(rows, (*columns, Column("Labels", "labels", rank=3), Column("Logged in as", "login", rank=1)), output)


@db.command("login")
@proxy_option
@click.option("--db-user", metavar="USER", default="", help="The database user.")
@click.option("--db-name", metavar="DATABASE", default="", help="The database inside it.")
@click.argument("name")
def db_login(proxy: str | None, db_user: str, db_name: str, name: str) -> None:
    """Get a certificate for one database."""
    from monoport.cli.progress import wait_noting
    from monoport.client import databases

    home = Home.of()
    profile = home.choose(proxy)
    wanted = databases.Wanted(name, db_user, db_name)
    done = wait_noting(databases.login(home, profile, wanted), f"asking {profile.proxy}")
    click.echo(f"logged in to {name} as {databases.describe(done.destination)} until {done.expires:%Y-%m-%d %H:%M} UTC")
    click.echo(f"certificate  {done.credentials.certificate}")
    click.echo(f"key          {done.credentials.key}")
    click.echo(f"connect      tsh db connect {name}")


@db.command("logout")
@proxy_option
@click.argument("name", required=False)
def db_logout(proxy: str | None, name: str | None) -> None:
    """Remove the certificate for one database, or for all."""
    from monoport.client import databases

    home = Home.of()
    for each in databases.logout(home, home.choose(proxy), name):
        click.echo(f"logged out of database {each}")


@db.command("connect", short_help="Open a database's own client.")
@proxy_option
@click.option("--db-user", metavar="USER", default="", help="The database user.")
@click.option("--db-name", metavar="DATABASE", default="", help="The database inside it.")
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF THE CLIENT]...")
def db_connect(proxy: str | None, db_user: str, db_name: str, name: str, arguments: tuple[str, ...]) -> int:
    """Open a database's own client, such as psql; its exit status is ours. Words behind -- are the client's."""
    from monoport.cli.progress import noting
    from monoport.client.databases import Wanted
    from monoport.client.shell import connect

    home = Home.of()
    return wait(connect(home, home.choose(proxy), Wanted(name, db_user, db_name), arguments, report=warn, busy=noting))


class _ByProtocol(click.Command):
    """A command whose help says what there is for each protocol."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from monoport.client.ways import offered

        super().format_options(ctx, formatter)
        with formatter.section("For programs of"):
            formatter.write_dl(offered(self.name or ""))


@db.command("env", cls=_ByProtocol, short_help="Print variables by which programs find a database.")
@proxy_option
@click.option(
    "--format",
    "output",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="text: for a shell to evaluate.",
)
@click.argument("name")
def db_env(proxy: str | None, output: str, name: str) -> None:
    """Print the variables by which programs reach a database with no tsh in between: eval "$(tsh db env NAME)"."""
    from monoport.client.ways import environment, exports

    home = Home.of()
    click.echo(exports(environment(home, home.choose(proxy), name), output), nl=False)


@db.command("config", cls=_ByProtocol, short_help="Write an entry by which programs find a database.")
@proxy_option
@click.option("--print", "only_print", is_flag=True, help="Write nothing, print the entry.")
@click.option("--service", metavar="NAME", default="", help="The entry's name; the database's if not given.")
@click.argument("name")
def db_config(proxy: str | None, only_print: bool, service: str, name: str) -> None:
    """Write an entry by which programs find a database with no tsh in between, and print it.

    It names the files of your login, so it holds after every renewal. Other entries are left as they are.
    """
    from monoport.client.ways import entry, write

    home = Home.of()
    made = entry(home, home.choose(proxy), name, service)
    if not only_print:
        write(home, made)
        click.echo(f"# in {made.path}; use it as: {made.use}")
    click.echo(made.text, nl=False)
