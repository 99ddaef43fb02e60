"""`tsh proxy db`: a local end of a database for other programs, until it is stopped.

Belongs here: what it listens on, and what is said about it. Does not belong here: bytes (localproxy.py), renewing the
certificate (renewal.py), how a connection is written down (ways.py, and the protocol's description).
"""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket

from monoport.client import databases, files
from monoport.client.filling import fill
from monoport.client.foreground import until_stopped
from monoport.client.front import Credentials, Front
from monoport.client.listening import address_of, listen, listen_unix, stable_port
from monoport.client.localproxy import LocalProxy, Wrapping
from monoport.client.names import Address
from monoport.client.profile import Home, Profile
from monoport.client.renewal import Keeper
from monoport.client.ways import filled, usable, words
from monoport.errors import Failure
from monoport.protocols.description import Description, Form


@dataclass(frozen=True, slots=True)
class Forward:
    """What `tsh proxy db` was asked for.

    Args:
        database: which one, and whom to be there.
        listen: `ADDR:PORT`; "" for 127.0.0.1 and the port made of the database's name, or one near it.
        unix: a Unix socket instead: its folder where clients are told a folder and a port, else its path.
        port: in the socket's name, 0 for the protocol's own.
        tunnel: the certificate is ours, clients need none; always so on a Unix socket, where clients speak no TLS.
        share_identity: with `tunnel`, listen beyond loopback.
        credentials: files whose certificate says database, user and protocol, in place of a login of this tsh; whoever
            made them renews them.
    """

    database: databases.Wanted
    listen: str = ""
    tunnel: bool = False
    share_identity: bool = False
    unix: Path | None = None
    port: int = 0
    credentials: Credentials | None = None

    @property
    def lends(self) -> bool:
        """Whether whoever connects acts as the user."""
        return self.tunnel or self.unix is not None


@dataclass(frozen=True, slots=True)
class _End:
    """What was opened to listen on; `path` is to be removed at the end, if it is one."""

    sockets: list[socket]
    shown: str
    host: str
    port: int
    path: Path | None = None


async def forward(
    home: Home, profile: Profile, wanted: Forward, *, announce: Callable[[str], None], report: Callable[[str], None]
) -> None:
    """Listens for one database until SIGINT or SIGTERM.

    Args:
        home: where the login is.
        profile: the login.
        wanted: as typed.
        announce: called with a few lines once it listens.
        report: called with one line for each connection that could not be joined, and for what becomes of renewals.

    Raises:
        Failure: unknown, refused, it cannot listen there, or the user has logged out.
    """
    given = _given(profile, wanted)
    if given is not None:
        wanted = replace(wanted, database=databases.Wanted(given.destination.name))
    end = None if wanted.unix is not None else _on_port(profile, wanted)
    with tempfile.TemporaryDirectory(prefix="tsh-db-") as folder:
        try:
            login = given or await databases.current(home, profile, Path(folder), wanted.database)
            protocol = databases.protocol_of(login.destination)
            wrapping = Wrapping(Front(profile), protocol.alpn[0], login.credentials if wanted.lends else None)
            wrapping.context()
            end = end or _on_socket(wanted, protocol)
        except BaseException:
            for each in end.sockets if end is not None else ():
                each.close()
            raise
        try:
            keeper = Keeper(home, profile, login, wrapping.adopt, report)
            proxy = LocalProxy(wrapping, end.sockets, report, protocol.front if wanted.lends else None)
            if wanted.lends:
                proxy.check = keeper.check
            for line in _lines(home, profile, wanted, login, end):
                announce(line)
            await _until_stopped(proxy, None if given is not None else keeper)
        finally:
            if end.path is not None:
                files.remove(end.path)


def _given(profile: Profile, wanted: Forward) -> databases.Login | None:
    """The login in the files that were named; raises Failure if they hold none for what is wanted."""
    if wanted.credentials is None:
        return None
    found = databases.read_login(profile, wanted.credentials)
    path = wanted.credentials.certificate
    if found is None:
        raise Failure(f"{path} holds no certificate for a database of {profile.cluster}")
    asked = replace(wanted.database, name=wanted.database.name or found.destination.name)
    if not asked.met_by(found):
        raise Failure(f"{path} is for {databases.describe(found.destination)} of database {found.destination.name}")
    return found


async def _until_stopped(proxy: LocalProxy, keeper: Keeper | None) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            serving = [group.create_task(proxy.serve())]
            if keeper is not None:
                serving.append(group.create_task(keeper.run()))
            await until_stopped()
            for each in serving:
                each.cancel()
    except* Failure as failed:
        raise failed.exceptions[0] from None


def _on_port(profile: Profile, wanted: Forward) -> _End:
    if wanted.listen:
        address = Address.parse(wanted.listen, None, "address to listen on", least_port=0)
        sockets = listen(address, lends_identity=wanted.lends, share_identity=wanted.share_identity)
    else:
        address = Address("127.0.0.1", stable_port(profile.cluster, wanted.database.name))
        sockets = listen(address, lends_identity=wanted.lends, or_next=True)
    bound = address_of(sockets)
    # A name that every proxy's certificate carries, for clients that verify it here; other addresses are not localhost.
    host = "localhost" if bound.host in ("127.0.0.1", "::1") and not wanted.lends else bound.host
    return _End(sockets, str(bound), "127.0.0.1" if host in ("0.0.0.0", "::") else host, bound.port)  # noqa: S104


def _on_socket(wanted: Forward, protocol: Description) -> _End:
    assert wanted.unix is not None
    path = wanted.unix.absolute()
    port = wanted.port or protocol.default_port
    if not protocol.shell.socket_by_port:
        if not path.name.endswith(protocol.shell.socket_ending):
            raise Failure(
                f"{path}: {protocol.title}'s clients know a socket by its name, which must end in "
                f"{protocol.shell.socket_ending}"
            )
        files.make_folder(path.parent)
        return _End(listen_unix(path), str(path), str(path), port, path)
    files.make_folder(path)
    path /= fill(protocol.shell.socket, {"port": str(port)})
    return _End(listen_unix(path), str(path), str(path.parent), port, path)


def _lines(home: Home, profile: Profile, wanted: Forward, login: databases.Login, end: _End) -> list[str]:
    protocol = databases.protocol_of(login.destination)
    ways = protocol.ways
    forms: tuple[Form, ...] = ways.own
    lines = [f"listening on {end.shown} for {protocol.title} database {login.destination.name} of {profile.cluster}"]
    if end.path is not None:
        lines.append("clients connect without a password; whoever can open this socket acts as you: only you can")
        forms = ways.socket
    elif wanted.lends:
        lines.append("clients connect without TLS and without a password; whoever can connect here acts as you")
        forms = ways.lent
    else:
        which = "this certificate" if wanted.credentials is not None else "the certificate of `tsh db login`"
        lines.append(f"clients bring TLS and {which} themselves")
    found = words(home, profile, login, Address(end.host, end.port), given=wanted.credentials is not None)
    shown = usable(forms, found)
    if forms and not shown:
        lines.append(f"  {protocol.title}'s clients want the private key, too: --cert FILE that holds both, to see how")
    width = max((len(form.label) for form in shown), default=0)
    return lines + [f"  {form.label:<{width}}  {filled(form, found)}" for form in shown]
