"""OpenSSH through the SSH proxy service and a tunnel to a node; only TLS is missing."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from monoport.access.identity import Identity, Kind
from monoport.auth import keys
from monoport.auth.certificates import issue_host_ssh
from monoport.net.memory import pair
from monoport.net.sockets import SocketStream
from monoport.proxy.connection import Connection
from monoport.proxy.registry import Connections
from monoport.proxy.ssh import SshProxy
from monoport.tunnel.agent import Agent
from monoport.tunnel.link import HostKey
from monoport.tunnel.proxy import Tunnels
from monoport.tunnel.reach import Proxy

from .conftest import CLUSTER, NODE, World


class Path:
    """A proxy before the world's node."""

    def __init__(self, world: World) -> None:
        self.world = world
        made = keys.generate()
        expires = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        names = ("proxy-1", "localhost", CLUSTER)
        identity = Identity(Kind.HOST, "proxy-1", CLUSTER, ("proxy",), principals=names, expires=expires)
        certificate = issue_host_ssh(world.authorities.host, made.ssh_public, identity, datetime.now(UTC))
        self.host = HostKey(made.private, certificate)
        self.connections = Connections()
        self.tunnels = Tunnels(lambda: self.host, self)
        self.service = SshProxy(lambda: self.host, self.tunnels, self, world.audit)

    cas = property(lambda self: self.world.cas)
    roles = property(lambda self: self.world.roles)
    locks = property(lambda self: self.world.locks)

    def nodes(self):
        return [self.world.listed]

    def databases(self):
        return []

    @asynccontextmanager
    async def open(self):
        """The proxy's port, with the node connected."""
        loop = asyncio.get_running_loop()
        front = SimpleNamespace(connections=self.connections, cas=lambda: self.world.cas)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)

        async def accept() -> None:
            while True:
                found, source = await loop.sock_accept(listening)
                connection = Connection("c-7", source, SocketStream(found), front)  # type: ignore[arg-type]
                group.create_task(self.service.serve(connection))

        async def connect():
            ours, theirs = pair()
            group.create_task(self.tunnels.serve(theirs, source=("192.0.2.1", 1), connection="t-1"))
            return ours

        agent = Agent(
            Proxy("localhost", 443),
            NODE,
            lambda: self.world.host,
            lambda: self.world.cas,
            self.world.node.serve,
            connect=connect,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(accept()), group.create_task(agent.run())]
            await agent.connected.wait()
            try:
                yield listening.getsockname()[1]
            finally:
                for task in tasks:
                    task.cancel()
                listening.close()

    def command(self, port: int) -> list[str]:
        """What makes OpenSSH go through the proxy, as `ssh -J` does."""
        mine = " ".join(map(str, self.world.openssh(port))).replace(f"HostKeyAlias={NODE}", "HostKeyAlias=localhost")
        options = [one for one in map(str, self.world.openssh(port)) if not one.startswith("HostName=")]
        cleaned = [one for index, one in enumerate(options) if not (one == "-o" and options[index + 1 :][:1] == ["-o"])]
        return [*cleaned, "-o", f"ProxyCommand=ssh {mine} -W %h:%p localhost"]


@pytest.fixture
def path(world, need) -> Path:
    need("ssh")
    return Path(world)


@pytest.mark.parametrize("name", ["web", f"web.{CLUSTER}", NODE])
async def test_a_command_on_a_node(world, path, name):
    async with path.open() as port:
        found = await world.run("ssh", *path.command(port), name, "id -un; cat; exit 5", stdin=b"through")
    assert (found.status, found.out, found.err) == (5, f"{world.login}\nthrough".encode(), b"")
    start = world.events("session.start")[0]
    assert start["connection"] == "c-7"
    assert str(start["source"]).startswith("127.0.0.1:")


async def test_megabytes_through_three_layers_of_ssh(world, path):
    data = os.urandom(1 << 20) * 8
    async with path.open() as port:
        found = await world.run("ssh", *path.command(port), "web", "cat", stdin=data)
    assert (found.status, found.out == data) == (0, True)


async def test_forty_sessions_at_once(world, path):
    async with path.open() as port:
        command = path.command(port)
        found = await asyncio.gather(
            *(world.run("ssh", *command, "web", f"echo {number}; sleep 0.2") for number in range(40))
        )
    assert [one.out.decode().strip() for one in found] == [str(number) for number in range(40)]


async def test_refusals_are_one_line(world, path):
    async with path.open() as port:
        unknown = await world.run("ssh", *path.command(port), "nowhere", "id")
        other = await world.run("ssh", "-oLogLevel=INFO", "-ldaemon", *path.command(port), "web", "id")
    assert unknown.status == other.status == 255
    assert b"login daemon is not allowed" in other.err


async def test_a_tunnel_that_dies_ends_the_session(world, path):
    async with path.open() as port:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(world.run("ssh", *path.command(port), "web", "echo up; sleep 1000"))
            await world.event("session.start")
            (tunnel,) = path.tunnels._tunnels[NODE]
            tunnel.link.abort()
            assert (await running).status == 255
        await world.event("session.end")
