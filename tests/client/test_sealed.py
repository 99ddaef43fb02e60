"""Our end of sealed sessions: asked for with a certificate only, carried on behind the opening, agents not believed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest

from monoport.access.identity import Identity, Kind
from monoport.auth.authorities import CaKind
from monoport.auth.certificates import issue_host, issue_user
from monoport.auth.keys import generate, load_chain
from monoport.client.front import Credentials, Front
from monoport.client.localproxy import Wrapping
from monoport.client.profile import Home
from monoport.net.sockets import SocketStream
from monoport.net.tls import TlsStream, serve_tls
from monoport.tunnel.sealing import BINDING

from .conftest import Cas, database_login, server_context, signed_in
from .test_localproxy import ask, local

ALPN = "teleport-postgres"
SEALED = f"{ALPN}-sealed"


def agent(cas: Cas, *roles: str, kind: Kind = Kind.HOST) -> ssl.SSLContext:
    """What an agent, or somebody who poses as one, shakes hands with."""
    now, pair = datetime.now(UTC).replace(microsecond=0), generate()
    identity = Identity(kind, "host-1", cas.cluster, roles=roles, expires=now + timedelta(hours=1))
    if kind is Kind.HOST:
        certificate = issue_host(cas.of[CaKind.HOST], pair.public, identity, now)
    else:
        certificate = issue_user(cas.of[CaKind.USER], pair.public, identity, now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, certificate, pair.private)
    context.load_verify_locations(cadata=cas.of[CaKind.USER].pem)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class SteppingAside:
    """A proxy that reads four bytes as the opening, then steps aside for an agent that says everything in capitals."""

    def __init__(self, outer: ssl.SSLContext, inner: ssl.SSLContext | None) -> None:
        self.outer, self.inner = outer, inner
        self.outer.set_alpn_protocols([SEALED, ALPN])
        self.alpn: list[str | None] = []
        self.certificates: list[bytes | None] = []
        self.inside = b""  # what only the agent has read, the binding included
        self.bindings: list[bytes] = []

    async def serve(self, raw: SocketStream) -> None:
        async with await serve_tls(raw, self.outer) as stream:
            self.alpn.append(stream.selected_alpn)
            self.certificates.append(stream.peer_certificate)
            await stream.write(b"<" + await stream.read_exactly(4) + b">")
            if stream.selected_alpn != SEALED:
                return
            stream.send_eof()
            opened = b""
            while data := await stream.read():
                opened += data
            below = stream.leave()
            if self.inner is not None:
                await self.session(await serve_tls(below, self.inner), opened)

    async def session(self, stream: TlsStream, opened: bytes) -> None:
        self.certificates.append(stream.peer_certificate)
        self.bindings.append(opened[-BINDING:])
        async with stream:
            self.inside = await stream.read_exactly(BINDING)
            assert self.inside == self.bindings[-1]
            await stream.write(opened[:-BINDING].upper())
            while data := await stream.read():
                self.inside += data
                await stream.write(data.upper())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)

            async def accept(group: asyncio.TaskGroup) -> None:
                while True:
                    accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
                    group.create_task(self.one(SocketStream(accepted)))

            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(accept(group))
                yield listening.getsockname()[1]
                accepting.cancel()

    async def one(self, raw: SocketStream) -> None:
        with suppress(ConnectionError):
            await self.serve(raw)


@asynccontextmanager
async def joined(
    home: Home, cas: Cas, proxy: SteppingAside, report: Callable[[str], None] = pytest.fail, *, lent: bool = True
) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """A local proxy before it; yields what asks it."""
    async with proxy.running() as port:
        profile = signed_in(home, cas, port)
        path = database_login(home, cas, profile, "orders")
        credentials = Credentials(path, home.keys(profile).key) if lent else None
        async with local(Wrapping(Front(profile), ALPN, credentials), report) as address:
            yield lambda data: ask(address, data)


async def test_a_session_goes_on_behind_its_opening(home: Home, cas: Cas) -> None:
    proxy = SteppingAside(server_context(cas), agent(cas, "db"))
    async with joined(home, cas, proxy) as asked:
        assert await asked(b"openand the rest") == b"<open>AND THE REST"
        data = bytes(range(97, 123)) * 20_000
        assert await asked(b"open" + data) == b"<open>" + data.upper()
    assert proxy.alpn == [SEALED] * 2
    assert proxy.certificates[0] is not None
    assert len(set(proxy.certificates)) == 1, "the same certificate to the proxy and to the agent"
    assert len({*proxy.bindings, bytes(BINDING)}) == 3, "every session's is its own, and chance"


async def test_without_a_certificate_nothing_is_sealed(home: Home, cas: Cas) -> None:
    proxy = SteppingAside(server_context(cas), None)
    async with joined(home, cas, proxy, lent=False) as asked:
        assert await asked(b"open") == b"<open>"
    assert proxy.alpn == [ALPN]


async def test_a_proxy_that_refuses_ends_and_nothing_is_said_of_it(home: Home, cas: Cas) -> None:
    """What the client reads is the refusal, in its own protocol; a line of ours would say it twice."""
    proxy = SteppingAside(server_context(cas), None)
    async with joined(home, cas, proxy) as asked:
        assert await asked(b"open") == b"<open>"
    assert proxy.alpn == [SEALED]


@pytest.mark.parametrize(
    ("roles", "kind", "other", "says"),
    [
        (("node",), Kind.HOST, False, "cannot be believed: host-1@example.com serves none"),
        ((), Kind.HOST, False, "cannot be believed: host-1@example.com serves none"),
        (("db",), Kind.USER, False, "certificate not accepted"),
        (("db",), Kind.HOST, True, "certificate not accepted"),
    ],
)
async def test_nobody_else_is_taken_for_the_agent(
    home: Home, cas: Cas, roles: tuple[str, ...], kind: Kind, other: bool, says: str
) -> None:
    said: list[str] = []
    stranger = agent(Cas() if other else cas, *roles, kind=kind)
    stranger.load_verify_locations(cadata=cas.of[CaKind.USER].pem)
    proxy = SteppingAside(server_context(cas), stranger)
    async with joined(home, cas, proxy, said.append) as asked:
        with suppress(ConnectionError):
            await asked(b"open" + b"and more " * 100_000)
    assert proxy.inside == b""
    assert len(said) == 1
    assert says in said[0]
