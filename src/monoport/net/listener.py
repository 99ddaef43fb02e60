"""Accepting: slots, deadlines, one task per connection.

Belongs here: `Listener`. Does not belong here: the sockets that it accepts on (`ports`), what the first bytes mean.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv6Address
from typing import Any

import structlog

from monoport.net.arrival import Arrival, LateError, Limits, Source
from monoport.net.balancers import Balancers, introduce
from monoport.net.deadlines import Deadlines
from monoport.net.ports import listen
from monoport.net.reactor import READ, Reactor
from monoport.net.sockets import SocketStream
from monoport.wire.proxyprotocol import ProxyHeaderError

ACCEPTS = 64  # per turn of the loop, so that a flood of new connections leaves room for the old ones
REST = 0.25  # seconds without accepting after the process ran out of descriptors or memory
PER_SOURCE = 512  # connections from one address unless configured: a large office behind one NAT
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# accept(2): errors of the one connection that was about to be accepted
PASSING = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.EPERM,
    errno.EINTR,
}


class _Drained(Exception):
    """The grace period of a drain is over."""


Serve = Callable[[Arrival], Awaitable[None]]
Refused = Callable[[str, Source, str, str], None]


class Listener:
    """Accepts on `sockets` and runs `serve(arrival)` in one task per connection, which ends with its stream.

    serve: the connection's life; `arrival.first` holds at least one byte, unless the client waits to be greeted.
    refused: called with connection id, source, code and reason for connections that end before `serve`. balancers:
    whose connections may begin with a PROXY header; None: nobody's. greets: sockets whose silent clients are served,
    and after how many seconds. The sockets belong to the listener.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        serve: Serve,
        limits: Limits,
        refused: Refused | None = None,
        balancers: Balancers | None = None,
        *,
        greets: Mapping[socket.socket, float] | None = None,
    ) -> None:
        self._sockets = list(sockets)
        self._families = {sock: int(sock.family) for sock in self._sockets}
        self._serve = serve
        self._limits = limits
        self._refused = refused or _log_refusal
        self._balancers = balancers
        self._greets = dict(greets or {})
        self._log: Any = structlog.get_logger()
        self._prefix = os.urandom(3).hex()  # tells the ids of this run from those of the one before
        self._count = 0
        self._taken = 0
        self._sources: Counter[str] = Counter()
        self._accepting = False
        self._drain: asyncio.Future[float] | None = None
        self._empty: asyncio.Event = asyncio.Event()

    @property
    def addresses(self) -> list[Source]:
        """The addresses that are listened on."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self._taken

    @property
    def listening(self) -> bool:
        """Whether newcomers are let in now, or will be as soon as a slot is free."""
        return self._drain is not None and not self._drain.done() and bool(self._sockets)

    async def run(self) -> None:
        """Serve until `drain`, or until cancelled, which ends every connection at once."""
        loop = self._loop = asyncio.get_running_loop()
        self._reactor = Reactor.of(loop)
        self._drain = loop.create_future()
        first, done = self._limits.first_bytes, self._limits.handshake
        self._hello = Deadlines[Arrival](loop, first, lambda late: late.late("complete first message", first))
        self._handshake = Deadlines[Arrival](loop, done, lambda late: late.late("finished TLS handshake", done))
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for sock in self._sockets:
                    listen(sock)
                self._resume()
                grace = await self._drain
                self._close()
                await self._emptied(grace)
                if self._taken:
                    raise _Drained  # has the group cancel every task that is left
        except* _Drained:
            pass
        finally:
            self._close()
            self._hello.stop()
            self._handshake.stop()

    def drain(self, grace: float) -> None:
        """Accept no more, give running connections `grace` seconds, then cancel them; `run` returns after that."""
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(grace)

    async def _emptied(self, grace: float) -> None:
        if not self._taken:
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(grace):
                await self._empty.wait()
        except TimeoutError:
            self._log.warning("connections still open at the end of the grace period", connections=self._taken)

    def _close(self) -> None:
        self._pause()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    # accepting

    def _resume(self) -> None:
        if not self._accepting and self._taken < self._limits.connections:
            self._accepting = True
            for sock in self._sockets:
                self._reactor.register(sock.fileno(), READ, partial(self._accept, sock))

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self._sockets:
                self._reactor.unregister(sock.fileno())

    def _accept(self, listening: socket.socket, _mask: int) -> None:
        # What socket.accept() wraps; the wrapper turns family and type into enums, twice, for every connection.
        accept: Callable[[], tuple[int, tuple[Any, ...]]] = listening._accept  # type: ignore[attr-defined]
        family = self._families[listening]
        for _ in range(ACCEPTS):
            if self._taken >= self._limits.connections:
                self._pause()  # newcomers wait in the kernel's backlog until a slot is free
                self._log.warning("every connection slot is taken", connections=self._taken)
                return
            try:
                fd, address = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in PASSING:
                    continue
                if error.errno not in EXHAUSTED:
                    raise
                self._pause()
                self._loop.call_later(REST, self._resume)
                self._log.error("cannot accept connections", reason=error.strerror, connections=self._taken)
                return
            self._admit(socket.socket(family, socket.SOCK_STREAM, 0, fd), address, self._greets.get(listening))

    def _admit(self, sock: socket.socket, address: tuple[Any, ...], patience: float | None) -> None:
        self._count += 1
        name = f"{self._prefix}{self._count:x}"
        source: Source = (address[0], address[1])
        # A balancer stands for many clients: it holds slots of the total alone until it has said for whom.
        balanced = self._balancers is not None and address[0] in self._balancers
        share = "" if balanced else self._count_in(name, source)
        if share is None:
            sock.close()
            return
        self._taken += 1
        stream = SocketStream(sock, self._loop, inherited=True)
        arrival = Arrival(name, stream, source, self._hello, self._handshake)
        arrival.share = share
        self._group.create_task(self._live(arrival, balanced, patience))

    def _count_in(self, name: str, source: Source) -> str | None:
        """Count a connection with others of its source: the key; None where it is one too many, and refused."""
        key, limit = self._share(source[0])
        if limit is None:
            return ""
        if self._sources[key] >= limit:
            self._refused(name, source, "too_many_connections", f"{key} holds {limit} connections, its limit")
            return None
        self._sources[key] += 1
        return key

    def _share(self, host: str) -> tuple[str, int | None]:
        """The key a source is counted under, and its limit."""
        limit = self._limits.per_source
        if ":" in host:
            address = IPv6Address(host.partition("%")[0])
            mapped = address.ipv4_mapped
            if mapped is not None:
                host = str(mapped)
            elif not address.is_loopback:
                # One customer's network is a /64: its addresses are one source.
                return f"{IPv6Address(int(address) >> 64 << 64)}/64", limit or PER_SOURCE
        if limit is None and (host.startswith("127.") or host == "::1"):
            return host, None
        return host, limit or PER_SOURCE

    # one connection

    async def _live(self, arrival: Arrival, balanced: bool, patience: float | None) -> None:
        stream = arrival.stream
        try:
            # Who may introduce its clients says first for whom it connects, or it is served as a client itself.
            if await self._spoke(arrival, patience) and (not balanced or await self._introduced(arrival, patience)):
                await self._serve(arrival)
            if not stream.lost:
                stream.close()
                await stream.wait_closed()
        except (ConnectionError, TimeoutError) as error:
            self._log.info("connection failed", connection=arrival.id, reason=str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001  one connection's error never ends the others; it is logged with its id
            self._log.exception("connection broke", connection=arrival.id)
        finally:
            if not stream.lost:
                stream.abort()
            arrival.routed()
            arrival.settled()
            self._release(arrival.share)

    async def _spoke(self, arrival: Arrival, patience: float | None) -> bool:
        """Wait for the first bytes, and return whether to serve the client: also if it waits to be greeted."""
        try:
            if patience is None:
                await arrival.more()
            else:
                return await _first(arrival, patience)
        except LateError as error:
            self._refused(arrival.id, arrival.source, "silence", str(error))
        except ConnectionError as error:  # port scans and health checks come and go: not worth a refusal
            self._log.debug("connection ended before its first byte", connection=arrival.id, reason=str(error))
        return bool(arrival.first)

    async def _introduced(self, arrival: Arrival, patience: float | None) -> bool:
        """Learn from a balancer's header, if one comes, who the client is, and count the connection there."""
        if not arrival.first:
            return True
        try:
            named = await introduce(arrival)
        except ProxyHeaderError as error:
            self._refused(arrival.id, arrival.source, "malformed_proxy_header", str(error))
            return False
        except (LateError, ConnectionError) as error:
            self._refused(arrival.id, arrival.source, "incomplete", str(error))
            return False
        if named:
            share = self._count_in(arrival.id, arrival.source)
            if share is None:
                return False
            arrival.share = share
        return bool(arrival.first) or await self._spoke(arrival, patience)

    def _release(self, key: str) -> None:
        self._taken -= 1
        if key:
            self._sources[key] -= 1
            if not self._sources[key]:
                del self._sources[key]
        if not self._taken:
            self._empty.set()
        if not self._accepting and self._sockets:
            self._resume()


async def _first(arrival: Arrival, patience: float) -> bool:
    """Wait so many seconds for a client's first bytes; whether it is still there then."""
    try:
        async with asyncio.timeout(patience):
            await arrival.more()
    except LateError:
        raise
    except TimeoutError:
        return True
    return bool(arrival.first)


def _log_refusal(connection: str, source: Source, code: str, reason: str) -> None:
    structlog.get_logger().info("refused", connection=connection, source=source[0], code=code, reason=reason)
