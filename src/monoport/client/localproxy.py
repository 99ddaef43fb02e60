"""Local proxies: a port or socket of this machine that leads to one database, for clients that know no ALPN.

Belongs here: listening, who may connect, wrapping. Does not belong here: which certificate (databases.py), the
database's protocol: bytes pass through as they are, Ctrl-C's cancel requests, which are connections of their own, too.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from monoport.client.front import Credentials, Front, cluster_context
from monoport.client.names import Address
from monoport.errors import Failure
from monoport.net.relay import relay
from monoport.net.sockets import SocketStream

BACKLOG = 128  # connections that wait to be accepted; a pool of clients opens a few dozen at once
MAX_CONNECTIONS = 512  # at once: below the usual limit of 1024 descriptors, of which each takes two


@dataclass(slots=True)
class Wrapping:
    """The outer TLS of a local proxy; certificates are read again when their files have changed."""

    front: Front
    alpn: str
    credentials: Credentials | None
    _context: ssl.SSLContext | None = None
    _seen: tuple[tuple[int, int, int], ...] = ()

    def context(self) -> ssl.SSLContext:
        """The context for the next connection.

        Raises:
            Failure: the files are missing or do not belong together and never did.
        """
        seen = self._stamps()
        if self._context is None or seen != self._seen:
            try:
                self._context = cluster_context(self.front.profile.host_cas, self.alpn, self.credentials)
                self._seen = seen
            except Failure:
                # A login that is just being written: key and certificate are two files. What we had still works.
                if self._context is None:
                    raise
        return self._context

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        if self.credentials is None:
            return ()
        found = []
        for path in (self.credentials.certificate, self.credentials.key):
            try:
                status = path.stat()
            except FileNotFoundError:
                return ((0, 0, 0),)
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


@dataclass(slots=True)
class LocalProxy:
    """Listens, and joins every connection with one to the proxy.

    `report` gets one line for each connection that could not be joined.
    """

    wrapping: Wrapping
    sockets: list[socket.socket]
    report: Callable[[str], None]
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS))

    @property
    def address(self) -> Address:
        """Where it listens, if that is a port."""
        host, port = self.sockets[0].getsockname()[:2]
        return Address(host, port)

    async def serve(self) -> None:
        """Accepts until cancelled, then ends every connection."""
        with ExitStack() as closing:
            for each in self.sockets:
                closing.callback(each.close)
            async with asyncio.TaskGroup() as group:
                for each in self.sockets:
                    group.create_task(self._accept(each, group))

    async def _accept(self, listening: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            accepted, _ = await loop.sock_accept(listening)
            group.create_task(self._serve_one(SocketStream(accepted)))

    async def _serve_one(self, local: SocketStream) -> None:
        try:
            async with local:
                remote = await self.wrapping.front.dial_with(self.wrapping.context(), self.wrapping.alpn)
                async with remote:
                    await relay(local, remote)
        except Failure as error:
            self.report(str(error))
        except ConnectionError:
            return  # one end broke off; the relay has passed it on to the other
        finally:
            self._slots.release()


def listen(address: Address, *, lends_identity: bool, share_identity: bool = False) -> list[socket.socket]:
    """Sockets that listen at the address, port 0 for any free one.

    Args:
        address: host and port.
        lends_identity: whether whoever connects acts as the user (`--tunnel`).
        share_identity: the user said that others may.

    Raises:
        Failure: in use, not ours, or wider than loopback while it lends the user's identity.
    """
    if lends_identity and not share_identity and not is_loopback(address.host):
        raise Failure(
            f"{address.host} is not a loopback address: with --tunnel everyone who can connect there would act as you; "
            "--share-identity says that you want that"
        )
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    host = "127.0.0.1" if address.host == "localhost" else address.host
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind((host, address.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Failure(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}") from None
    return [listening]


def listen_unix(path: Path) -> list[socket.socket]:
    """A Unix socket that only its owner can connect to.

    Args:
        path: where nothing is yet, in a folder of our own.

    Raises:
        Failure: it cannot be made there.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setblocking(False)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Failure(f"cannot listen on {path}: {(error.strerror or str(error)).lower()}") from None
    return [listening]


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect there; names other than localhost are not resolved to find out."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
