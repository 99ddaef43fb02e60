"""The agent's way to the proxy's one port: real TLS on loopback, and what it does not believe."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from monoport.access.identity import Identity, Kind
from monoport.auth import keys
from monoport.auth.authorities import Authorities, CaKind, generate
from monoport.auth.certificates import issue_host, issue_host_ssh
from monoport.errors import Failure
from monoport.net.sockets import SocketStream
from monoport.net.tls import HandshakeError, serve_tls
from monoport.tunnel import dial
from monoport.tunnel.agent import Agent
from monoport.tunnel.link import HostKey
from monoport.tunnel.preface import Kind as Wanted
from monoport.tunnel.preface import Preface
from monoport.tunnel.proxy import Tunnels
from monoport.tunnel.reach import ALPN, Proxy, dial_tls

from .world import CLUSTER, node, permit_for

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authorities() -> Authorities:
    return Authorities(CLUSTER, {kind: (generate(kind, CLUSTER, NOW),) for kind in CaKind})


def host(authorities: Authorities, name: str, role: str, names: tuple[str, ...]) -> tuple[HostKey, str]:
    made = keys.generate()
    expires = (NOW + timedelta(hours=1)).replace(microsecond=0)
    identity = Identity(Kind.HOST, name, CLUSTER, (role,), principals=names, expires=expires)
    line = issue_host_ssh(authorities.host, made.ssh_public, identity, NOW)
    return HostKey(made.private, line), issue_host(authorities.host, made.public, identity, NOW)


def server_context(key: HostKey, certificate: str, alpn: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys.load_chain(context, certificate, key.key)
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


@asynccontextmanager
async def port(context: ssl.SSLContext, alpn: str | None, serve) -> AsyncIterator[int]:
    """A loopback port that speaks TLS and hands the stream on."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)

    async def one(found: socket.socket) -> None:
        raw = SocketStream(found)
        try:
            stream = await serve_tls(raw, context, alpn=alpn)
            await serve(stream)
            stream.close()
        except (HandshakeError, ConnectionError):
            raw.abort()

    async def accept() -> None:
        while True:
            found, _ = await asyncio.get_running_loop().sock_accept(listening)
            group.create_task(one(found))

    async with asyncio.TaskGroup() as group:
        accepting = group.create_task(accept())
        try:
            yield listening.getsockname()[1]
        finally:
            accepting.cancel()
            listening.close()


async def test_a_whole_tunnel_through_tls(authorities):
    proxy_key, certificate = host(authorities, "proxy-1", "proxy", ("localhost", CLUSTER))
    node_key, _ = host(authorities, "n1", "node", ("n1",))
    listed = node("n1", "web")

    class Known:
        cas = authorities.trusted()
        locks = ()

        def nodes(self):
            return [listed]

        def databases(self):
            return []

    tunnels = Tunnels(lambda: proxy_key, Known())

    async def serve(stream):
        assert stream.selected_alpn == ALPN
        await tunnels.serve(stream, source=("127.0.0.1", 1), connection="t-1")

    async def echo(preface, stream):
        await dial.accept(stream)
        await stream.write(await stream.read())
        stream.send_eof()

    async with port(server_context(proxy_key, certificate, ALPN), ALPN, serve) as number, asyncio.TaskGroup() as group:
        agent = Agent(Proxy("localhost", number), "n1", lambda: node_key, lambda: Known.cas, echo)
        running = group.create_task(agent.run())
        await agent.connected.wait()
        async with await tunnels.dial(permit_for(listed), Preface("c-1", Wanted.SSH, "n1")) as stream:
            await stream.write(b"through")
            assert await stream.read_exactly(7) == b"through"
        running.cancel()


async def nothing(stream) -> None:
    await stream.read()


@pytest.mark.parametrize("wrong", ["ca", "name", "alpn"])
async def test_what_is_not_the_proxy(authorities, wrong):
    signing = authorities
    if wrong == "ca":
        signing = Authorities(CLUSTER, {kind: (generate(kind, CLUSTER, NOW),) for kind in CaKind})
    names = ("elsewhere.example.com",) if wrong == "name" else ("localhost",)
    key, certificate = host(signing, "proxy-1", "proxy", names)
    alpn = None if wrong == "alpn" else ALPN
    async with port(server_context(key, certificate, alpn), alpn, nothing) as number:
        with pytest.raises((Failure, OSError)) as caught:
            await dial_tls(Proxy("localhost", number), authorities.trusted())
    assert str(caught.value)
    assert ("does not speak teleport-reversetunnel" in str(caught.value)) == (wrong == "alpn")


async def test_nobody_listens(authorities):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises((Failure, OSError)):
            await dial_tls(Proxy("127.0.0.1", probe.getsockname()[1]), authorities.trusted())
