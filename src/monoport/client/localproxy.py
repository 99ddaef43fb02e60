"""Local proxies: a port or socket of this machine that leads to one database, for clients that know no ALPN.

Belongs here: joining and wrapping. Does not belong here: listening (listening.py), which certificate (renewal.py), the
database's protocol: bytes pass through as they are, Ctrl-C's cancel requests, which are connections of their own, too.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from monoport.client.front import Credentials, Front, cluster_context, origin
from monoport.client.joined import Joined, came_from
from monoport.client.listening import address_of
from monoport.client.names import Address
from monoport.client.profile import Profile
from monoport.client.refusal import tell
from monoport.client.sealed import agent_context, relay_sealed
from monoport.errors import Failure
from monoport.net.meter import Meter
from monoport.net.relay import relay
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import TlsStream
from monoport.routing.names import sealed
from monoport.wire.front import Front as Opening

MAX_CONNECTIONS = 512  # at once: below the usual limit of 1024 descriptors, of which each takes two


@dataclass(slots=True)
class Wrapping:
    """The TLS of a local proxy; certificates are read again when their files have changed.

    With credentials, sessions are sealed where the proxy serves that: it cannot read them then.
    """

    front: Front
    alpn: str
    credentials: Credentials | None
    _context: ssl.SSLContext | None = None
    _agents: ssl.SSLContext | None = None
    _seen: tuple[tuple[tuple[int, int, int], ...], tuple[str, ...]] = ((), ())

    def context(self) -> ssl.SSLContext:
        """The context for the next connection.

        Raises:
            Failure: the files are missing or do not belong together and never did.
        """
        seen = (self._stamps(), self.front.profile.host_cas)
        while self._context is None or seen != self._seen:
            try:
                profile, credentials = self.front.profile, self.credentials
                agents = agent_context(profile, credentials) if credentials is not None else None
                self._context = cluster_context(profile.host_cas, self.alpn, credentials, preferred=self._sealed)
                self._agents, self._seen = agents, seen
            except Failure:
                # A login that is just being written: key and certificate are two files. What we had still works.
                if self._context is None:
                    raise
                break
            seen = (self._stamps(), self.front.profile.host_cas)  # the two contexts must be of one login
        return self._context

    @property
    def _sealed(self) -> str:
        return sealed(self.alpn) if self.credentials is not None else ""

    async def dial(self) -> "Dialled":
        """A connection to the proxy; raises Failure."""
        context, agents, front = self.context(), self._agents, self.front
        remote = await front.dial_with(context, self.alpn, preferred=self._sealed)
        return Dialled(remote, agents if remote.selected_alpn != self.alpn else None, front.profile)

    def adopt(self, profile: Profile) -> None:
        """Take the profile of a new login of the same user: its CAs and its end."""
        self.front = Front(profile)

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


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection to the proxy, and what its session is sealed with, if it is: the certificate that it began with."""

    remote: TlsStream
    agents: ssl.SSLContext | None
    profile: Profile

    async def relay(self, local: Stream, meter: Meter) -> None:
        """Join it with a local client to the end; raises Failure."""
        if self.agents is None:
            await relay(local, self.remote, meter=meter)
        else:
            await relay_sealed(local, self.remote, self.agents, self.profile, meter)


@dataclass(slots=True)
class LocalProxy:
    """Listens, and joins every connection with one to the proxy.

    `report` gets one line for each connection that could not be joined, and so does the client if `front` makes fronts
    of its protocol, and one for each that breaks off. `check` raises Failure if a new connection cannot be joined now.
    """

    wrapping: Wrapping
    sockets: list[socket.socket]
    report: Callable[[str], None]
    front: Callable[[], Opening] | None = None
    check: Callable[[], None] = lambda: None
    joined: int = 0  # connections that run now
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS))

    @property
    def address(self) -> Address:
        """Where it listens, if that is a port."""
        return address_of(self.sockets)

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
            accepted, peer = await loop.sock_accept(listening)
            group.create_task(self._serve_one(SocketStream(accepted), Joined(came_from(peer), self.report)))

    async def _serve_one(self, local: SocketStream, joined: Joined) -> None:
        try:
            async with local:
                try:
                    self.check()
                    dialled = await self.wrapping.dial()
                except Failure as error:
                    self.report(str(error))
                    if self.front is not None:
                        with suppress(ConnectionError):  # it left before it knew why; the line has been said
                            await tell(local, self.front(), str(error))
                    return
                self.joined += 1
                joined.begin(origin(dialled.remote))
                meter = Meter()
                try:
                    async with dialled.remote:
                        await dialled.relay(local, meter)
                finally:
                    self.joined -= 1
                joined.over(meter)
        except (Failure, ConnectionError) as error:  # the relay has passed it on to the other end
            joined.broke(error)
        finally:
            self._slots.release()
