"""The real databases of the demonstration: whichever of them is installed.

Belongs here: what each is called, how it is made ready for the user of the demonstration, what it is asked to show its
version. Does not belong here: running a server (postgres.py, mariadb.py), what the user pastes (commands.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from monoport.daemon.demo import mariadb, postgres


class Server(Protocol):
    """A server that runs."""

    port: int

    def stop(self) -> None:
        """Stop it."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a server is made of: its folder, and the PEM texts that `tctl auth sign --format=db` wrote."""

    folder: Path
    certificate: str
    key: str
    authorities: str


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of database.

    Args:
        name: in the cluster. title: for people. protocol: in the agent's configuration. package: Debian's.
        installed: whether it is here.
        start: called with its files, the port, the cluster, the user, who gets a database of the same name, and what
            the server is to be kept in for stopping as soon as there is one; returns the version.
    """

    name: str
    title: str
    protocol: str
    package: str
    installed: Callable[[], bool]
    start: Callable[[Files, int, str, str, Callable[[Server], None]], str]


def _postgres(files: Files, port: int, _cluster: str, user: str, keep: Callable[[Server], None]) -> str:
    server = postgres.PostgresServer(files.folder, files.certificate, files.key, files.authorities, port=port)
    new = not (files.folder / "data").exists()
    keep(server)
    server.start()
    if new:
        server.sql(f"create role {user} login; create database {user} owner {user};")
    return server.sql("show server_version").split()[0]


def _mariadb(files: Files, port: int, cluster: str, user: str, keep: Callable[[Server], None]) -> str:
    server = mariadb.MariaDbServer(files.folder, files.certificate, files.key, files.authorities, port=port)
    new = not (files.folder / "data").exists()
    keep(server)
    server.start()
    if new:
        subject = f"/O={cluster}/OU={MARIADB.name}/CN={user}"
        server.sql(f"create database {user}; create user {user} require subject '{subject}';")
        server.sql(f"grant all on {user}.* to {user};")
    return server.sql("select version()").partition("-")[0].strip()


POSTGRES = Kind(
    name="pg",
    title="PostgreSQL",
    protocol="postgres",
    package="postgresql",
    installed=lambda: bool(postgres.find("postgres") and postgres.find("psql")),
    start=_postgres,
)
MARIADB = Kind(
    name="my",
    title="MariaDB",
    protocol="mariadb",
    package="mariadb-server",
    installed=mariadb.installed,
    start=_mariadb,
)
ALL = (POSTGRES, MARIADB)


def installed() -> tuple[Kind, ...]:
    """Those that can be started here."""
    return tuple(kind for kind in ALL if kind.installed())
