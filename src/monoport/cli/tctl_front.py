"""`tctl events|route|conns`: what happened, and what the front door does.

Belongs here: options and words of these commands. The daemon answers for its own connections and routes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from monoport.access.resources import to_document
from monoport.audit.events import Event
from monoport.auth.client import AuthClient
from monoport.cli.beside import Beside, pass_beside
from monoport.cli.options import names_option
from monoport.cli.run import Group
from monoport.cli.tables import TABLES, Column, ago, cell, document, format_option, printable, show, size
from monoport.daemon.reach import Aim, explained_by_auth
from monoport.errors import Failure
from monoport.protocols.description import Description

PAGE = 500  # events asked for at once
_SHOWN_APART = ("id", "time", "type", "user")
# Ids and addresses, which are looked for rather than read: what happened comes before them where a line is cut.
_SHOWN_LAST = ("connection", "source", "node", "host_id", "login_ip")


@click.group(cls=Group)
def events() -> None:
    """The audit log."""


@events.command("ls")
@click.option("--type", "event_type", metavar="TYPE", help="Only this type; session.* is every type of a family.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most.")
@format_option
@pass_beside
def events_ls(beside: Beside, event_type: str | None, limit: int, output: str) -> None:
    """List audit events, the newest first."""
    if event_type is not None and "*" in event_type.removesuffix(".*"):
        raise Failure(f"--type {event_type!a}: expected a type such as db.query, or a family such as db.*")

    async def ask(client: AuthClient) -> list[Event]:
        found: list[Event] = []
        position = None
        while len(found) < limit:
            page = await client.events_list(min(PAGE, limit - len(found)), position, event_type)
            found += page.events
            position = page.next
            if position is None:
                break
        return found

    rows = [{**event.fields, "id": event.id, "time": event.time, "type": event.type} for event in beside.ask(ask)]
    if output in TABLES:
        rows = [{**row, "what": _rest(row)} for row in rows]
    columns = [
        Column("Time", "time", whole=True),
        Column("Event", "type", "bold", whole=True),
        Column("User", "user"),
        Column("What", "what"),
    ]
    show(rows, columns, output)


def _rest(row: dict[str, Any]) -> str:
    names = sorted((name for name in row if name not in _SHOWN_APART), key=_SHOWN_LAST.count)
    cells = {name: cell(row[name]) for name in names}
    return " ".join(f"{name}={_quoted(text)}" for name, text in cells.items() if text)


def _quoted(text: str) -> str:
    """The text, within quotes where blanks could be taken for its end."""
    return '"' + text.replace('"', '\\"') + '"' if " " in text else text


# Titles, keys and styles of an explanation, whose reasons are read to their end, however long.
_EXPLAINED = (("Rule", "rule", "bold"), ("Verdict", "verdict", ""), ("Why", "why", ""))


@click.group(cls=Group)
def route() -> None:
    """How connections are routed by their first bytes."""


@route.command("ls")
@format_option
@pass_beside
def route_ls(beside: Beside, output: str) -> None:
    """List the routing table, in its order."""
    columns = [
        Column("Rule", "rule", "bold", whole=True),
        Column("When", "when"),
        Column("Goes to", "goes_to"),
        Column("TLS", "tls", rank=1),
    ]
    show(beside.ask_daemon("/routes"), columns, output)


@route.command("explain")
@click.option("--sni", default="", metavar="NAME", help="The server name that the client asks for.")
@names_option("--alpn", metavar="A,..", help="The protocols it offers, in its order.")
@click.option("--cert", type=click.Path(path_type=Path), metavar="FILE", help="The client's certificate, PEM.")
@click.option("--user", metavar="NAME", help="Instead of a certificate: a user, as if signed in now.")
@click.option("--node", metavar="NAME", help="Explain access to this node, too.")
@click.option("--login", metavar="NAME", help="As this login; any if not given.")
@click.option("--db", metavar="NAME", help="Explain access to this database, too.")
@click.option("--db-user", metavar="U", help="As this database user.")
@click.option("--db-name", metavar="D", help="In this database there; sessions of MySQL and MongoDB may begin in none.")
@format_option
@pass_beside
def route_explain(  # noqa: PLR0917 - click passes every option by its name
    beside: Beside,
    /,
    sni: str,
    alpn: tuple[str, ...],
    cert: Path | None,
    user: str | None,
    output: str,
    **aim: str | None,
) -> None:
    """Say where such a connection would go, and why.

    With --node or --db and one of --user and --cert: whether they may, and which rule of which role decides. Without
    --sni and --alpn it is then the connection that tsh would make.
    """
    if cert is not None and user is not None:
        raise Failure("expected one of --cert and --user, not both")
    wanted = _aim(aim, cert is not None or user is not None)
    question: dict[str, Any] = {"sni": sni, "alpn": list(alpn)}
    if cert is not None:
        question["certificate"] = cert.read_text(encoding="ascii", errors="replace")
    if user is not None:
        question["user"] = to_document(beside.ask(lambda client: client.get("user", user)))
    if wanted:
        question["aim"] = wanted
    if wanted and beside.config.auth_service.enabled and not beside.config.proxy_service.enabled:
        if sni or alpn:
            raise Failure("no proxy runs in this daemon: without one it is access alone that is explained here")
        answer = {"access": beside.ask(lambda client: _by_auth(client, question, beside.config.protocols))}
    else:
        answer = beside.ask_daemon("/explain", question)
    if output not in TABLES:
        click.echo(document(answer, output), nl=False)
        return
    columns = [Column(title, key, style, whole=True) for title, key, style in _EXPLAINED]
    if "steps" in answer:
        click.echo(printable(answer["outcome"]) + "\n")
        show(answer["steps"], columns)
    if "access" in answer:
        *steps, decision = answer["access"]
        before = "\n" if "steps" in answer else ""
        click.echo(f"{before}{printable(decision['verdict'])}: {printable(decision['why'])}\n")
        show(steps, columns)


async def _by_auth(
    client: AuthClient, question: Mapping[str, Any], protocols: Mapping[str, Description]
) -> list[dict[str, str]]:
    """What the auth service's own lists say, where there is no proxy whose daemon could be asked."""
    aim = Aim(**question["aim"])
    return await explained_by_auth(client, aim, question.get("user"), question.get("certificate", ""), protocols)


def _aim(given: Mapping[str, str | None], caller: bool) -> dict[str, str]:
    """What is to be reached, as the daemon takes it, empty if nothing; raises Failure."""
    aim = {name: value for name, value in given.items() if value is not None}
    if not aim:
        return {}
    if ("node" in aim) == ("db" in aim):
        raise Failure("expected one of --node (with --login) and --db (with --db-user and --db-name)")
    if "db" in aim and "login" in aim:
        raise Failure("--db goes with --db-user and --db-name, not with --login")
    if "node" in aim and {"db_user", "db_name"} & set(aim):
        raise Failure("--node goes with --login, and without --db-user and --db-name")
    if not caller:
        raise Failure("whose access? expected one of --user and --cert")
    return aim


@click.group(cls=Group)
def conns() -> None:
    """Connections to the one port."""


@conns.command("ls")
@format_option
@pass_beside
def conns_ls(beside: Beside, output: str) -> None:
    """List live connections and the latest refusals."""
    rows = beside.ask_daemon("/conns")
    if output in TABLES:
        rows = [
            {**row, "age": ago(row["age_s"]), "in": size(row["bytes_in"]), "out": size(row["bytes_out"])}
            for row in rows
        ]
    columns = [
        Column("Id", "id", whole=True),
        Column("Source", "source", rank=1, whole=True),
        Column("User", "user"),
        Column("Route", "route"),
        Column("SNI", "sni", rank=4),
        Column("ALPN", "alpn", rank=5),
        Column("State", "state"),
        Column("Age", "age", rank=2),
        Column("In", "in", rank=3),
        Column("Out", "out", rank=3),
        Column("Reason", "reason"),
    ]
    show(rows, columns, output)
