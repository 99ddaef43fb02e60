"""A scripted SSH proxy over loopback: TLS with its ALPN, SSH inside, every channel answered by a function."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from monoport.auth.authorities import CaKind
from monoport.client.names import Address
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream
from monoport.net.tls import serve_tls
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.link import USER_LOGIN, HostKey, ServerLink, server_options, serving

from .conftest import NAMES, NOWHERE, Cas, server_context

Node = Callable[[str, int, Stream], Awaitable[None]]


@dataclass
class SshProxy:
    """`node` serves every channel; hosts in `refused` are answered with that reason."""

    cas: Cas
    node: Node
    refused: dict[str, str] = field(default_factory=dict)
    ssh_names: tuple[str, ...] = NAMES
    address: Address = NOWHERE
    users: list[str] = field(default_factory=list)
    opened: list[tuple[str, int]] = field(default_factory=list)
    group: asyncio.TaskGroup | None = None
    through: Callable[[Stream], Stream] = lambda stream: stream  # the wire to it

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SshProxy]:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self.address = Address("127.0.0.1", listening.getsockname()[1])
        context = server_context(self.cas, alpn="teleport-proxy-ssh")
        pair, _, certificate = self.cas.proxy(self.ssh_names)
        options = server_options(HostKey(pair.private, certificate), USER_LOGIN)

        async def accept() -> None:
            assert self.group is not None
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listening)
                self.group.create_task(serve(SocketStream(sock)))

        async def serve(raw: SocketStream) -> None:
            with suppress(ConnectionError, asyncssh.Error):
                stream = await serve_tls(raw, context, alpn="teleport-proxy-ssh")
                async with serving(self.through(stream), options, ServerLink, _Owner(self), ("127.0.0.1", 1)) as link:
                    await link.wait_closed()

        with listening:
            async with asyncio.TaskGroup() as self.group:
                accepting = self.group.create_task(accept())
                try:
                    yield self
                finally:
                    accepting.cancel()


class _Owner(asyncssh.SSHServer):
    def __init__(self, proxy: SshProxy) -> None:
        self._proxy = proxy

    def begin_auth(self, username: str) -> bool:
        self._proxy.users.append(username)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_ca_key(self, _username: str, key: asyncssh.SSHKey) -> bool:
        ours = asyncssh.import_public_key(self._proxy.cas.of[CaKind.USER].ssh_line)
        return key.public_data == ours.public_data

    def connection_requested(self, dest_host: str, dest_port: int, *_: Any) -> Any:
        if reason := self._proxy.refused.get(dest_host):
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, reason)
        self._proxy.opened.append((dest_host, dest_port))
        session = ChannelSession()
        assert self._proxy.group is not None
        self._proxy.group.create_task(self._serve(dest_host, dest_port, session))
        return session

    async def _serve(self, host: str, port: int, session: ChannelSession) -> None:
        await session.opened.wait()
        with suppress(ConnectionError):
            async with session.stream as stream:
                await self._proxy.node(host, port, stream)


async def echo(_host: str, _port: int, stream: Stream) -> None:
    """Send everything back, then our end after the peer's."""
    while data := await stream.read():
        await stream.write(data)
