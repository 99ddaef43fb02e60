"""`tsh db connect`: a database's own client program, on a local proxy that lives as long as it does.

Belongs here: which program, with which words. Does not belong here: bytes (localproxy.py), signals (foreground.py), a
local proxy for other programs (forward.py).
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monoport.client import databases
from monoport.client.busy import Busy, quiet
from monoport.client.filling import fill, needed
from monoport.client.foreground import run
from monoport.client.front import Front
from monoport.client.listening import listen, listen_unix
from monoport.client.localproxy import LocalProxy, Wrapping
from monoport.client.names import Address
from monoport.client.profile import Home, Profile
from monoport.client.renewal import Keeper
from monoport.errors import Failure
from monoport.protocols.description import Description, Shell

ANY_PORT = Address("127.0.0.1", 0)


async def connect(
    home: Home,
    profile: Profile,
    wanted: databases.Wanted,
    arguments: Sequence[str] = (),
    *,
    report: Callable[[str], None],
    busy: Busy = quiet,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Runs the database's client through an on-demand local proxy and returns its exit status.

    Args:
        home: where the login is.
        profile: the login.
        wanted: which database, and whom to be in it.
        arguments: further words for the program.
        report: called with one line for connections that could not be joined, once where all have the same reason.
        busy: announces asking the cluster.
        environment: of the program.

    Raises:
        Failure: unknown, refused, the user must choose, or the program is not installed.
    """
    report = _once(report)
    with tempfile.TemporaryDirectory(prefix="tsh-db-") as folder:
        with busy(f"asking {profile.proxy} for database {wanted.name}"):
            login = await databases.borrow(home, profile, Path(folder), wanted)
        protocol = databases.protocol_of(login.destination)
        chosen = _chosen(protocol, login.destination.user or wanted.user, login.destination.database or wanted.database)
        program = _program(protocol, environment)
        wrapping = Wrapping(Front(profile), protocol.alpn[0], login.credentials)
        wrapping.context()
        proxy, where = _listening(protocol, wrapping, Path(folder), report)
        keeper = Keeper(home, profile, login, wrapping.adopt, report)
        values = where | chosen
        command = [program, *_words(protocol.shell, values), *arguments]
        extra = {variable: fill(text, values) for variable, text in protocol.shell.environment}
        async with asyncio.TaskGroup() as group:
            serving = [group.create_task(proxy.serve()), group.create_task(keeper.run())]
            status = await run(command, {**environment, **extra})
            for each in serving:
                each.cancel()
    return status


def _once(report: Callable[[str], None]) -> Callable[[str], None]:
    """`report` without a line that it had just before: a driver's pool and its monitors fail for one reason."""
    last = ""

    def said(line: str) -> None:
        nonlocal last
        if line != last:
            last = line
            report(line)

    return said


def _listening(
    protocol: Description, wrapping: Wrapping, folder: Path, report: Callable[[str], None]
) -> tuple[LocalProxy, dict[str, str]]:
    """A local proxy for one program: on a socket in our private folder, where only the user gets at it, if it can."""
    if protocol.shell.socket:
        port = str(protocol.default_port)
        path = folder / fill(protocol.shell.socket, {"port": port})
        proxy = LocalProxy(wrapping, listen_unix(path), report, protocol.front)
        return proxy, {"socket": str(path), "host": str(folder), "port": port}
    proxy = LocalProxy(wrapping, listen(ANY_PORT, lends_identity=True), report, protocol.front)
    return proxy, {"socket": "", "host": proxy.address.host, "port": str(proxy.address.port)}


def _words(shell: Shell, values: Mapping[str, str]) -> list[str]:
    """The program's words, without those that need a value which is empty."""
    quoted = {name: shell.quote(value) if value else "" for name, value in values.items()}
    return [fill(word, quoted) for word in shell.arguments if all(quoted[name] for name in needed(word))]


def _chosen(protocol: Description, user: str, database: str) -> dict[str, str]:
    if protocol.needs_user and not user:
        raise Failure("which database user? name one: --db-user=USER")
    if protocol.needs_database and not database:
        raise Failure("which database inside it? name one: --db-name=DATABASE")
    return {"user": user, "database": database}


def _program(protocol: Description, environment: Mapping[str, str]) -> str:
    path = environment.get("PATH")
    programs = (protocol.shell.program, *protocol.shell.others)
    found = next((where for name in programs if (where := shutil.which(name, path=path))), None)
    if found is None:
        raise Failure(
            f"{protocol.shell.program} is not installed: {protocol.shell.install}"
            if protocol.shell.install
            else f"{protocol.shell.program} is not installed"
        )
    return found
