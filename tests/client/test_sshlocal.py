"""`tsh proxy ssh --listen --tunnel`: sessions that are joined, over loopback, with a scripted node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest

from monoport.client import sshlocal
from monoport.client.profile import Home
from monoport.client.ssh import Target
from monoport.net.stream import Stream
from monoport.tunnel.link import USER_LOGIN, WINDOW, HostKey, ServerLink, server_options, serving

from .conftest import Cas, signed_in
from .sshproxy import SshProxy

OUTPUT = os.urandom(WINDOW * 5)  # most of it waits for the reader when the command has ended

End = Callable[[asyncssh.SSHServerChannel[bytes]], None]


class _Command(asyncssh.SSHServerSession[bytes]):
    """Ends as it is told to, in the same breath as it begins."""

    def __init__(self, end: End) -> None:
        self._end = end

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, _command: str) -> bool:
        return True

    def session_started(self) -> None:
        self._end(self._channel)


class _Node(asyncssh.SSHServer):
    """A node that lets everybody in."""

    def __init__(self, end: End) -> None:
        self._end = end

    def begin_auth(self, _username: str) -> bool:
        return False

    def session_requested(self) -> _Command:
        return _Command(self._end)


@asynccontextmanager
async def local_port(home: Home, cas: Cas, end: End) -> AsyncIterator[int]:
    """A port of tsh that leads to a node whose commands end like that."""
    pair, _, certificate = cas.proxy(("node",))
    options = server_options(HostKey(pair.private, certificate), USER_LOGIN)

    async def node(_host: str, _port: int, stream: Stream) -> None:
        async with serving(stream, options, ServerLink, _Node(end), ("127.0.0.1", 1)) as link:
            await link.wait_closed()

    async with SshProxy(cas, node).running() as proxy, asyncio.TaskGroup() as group:
        signed_in(home, cas, proxy.address.port)
        said: asyncio.Queue[str] = asyncio.Queue()
        wanted = sshlocal.Local(Target("node", 22, "root"), "127.0.0.1:0", tunnel=True)
        served = group.create_task(sshlocal.serve(home, None, wanted, announce=said.put_nowait, report=said.put_nowait))
        yield int((await said.get()).split()[0].rpartition(":")[2])
        served.cancel()


def connected(port: int) -> Any:
    """A client of the port, which asks for nothing."""
    return asyncssh.connect("127.0.0.1", port, username="root", known_hosts=None, config=None)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (lambda channel: channel.exit(0), 0),
        (lambda channel: channel.exit(7), 7),
        (lambda channel: channel.exit_with_signal("TERM"), -15),
    ],
)
async def test_output_that_still_waits_when_a_command_ends_arrives_whole(
    home: Home, cas: Cas, ending: End, status: int
) -> None:
    def end(channel: asyncssh.SSHServerChannel[bytes]) -> None:
        channel.write(OUTPUT)
        channel.write_eof()
        ending(channel)

    async with asyncio.timeout(30), local_port(home, cas, end) as port, connected(port) as client:
        found = await client.run("all of it", encoding=None)
    assert (len(found.stdout or b""), found.returncode) == (len(OUTPUT), status)
    assert found.stdout == OUTPUT


async def test_output_that_was_cut_off_is_no_success(home: Home, cas: Cas) -> None:
    def end(channel: asyncssh.SSHServerChannel[bytes]) -> None:
        channel.write(OUTPUT)
        channel.write_eof()
        channel.exit(0)
        channel.get_connection().abort()

    async with asyncio.timeout(30), local_port(home, cas, end) as port, connected(port) as client:
        found = await client.run("all of it", encoding=None)
    assert len(found.stdout or b"") < len(OUTPUT)
    assert found.exit_status is None


async def test_input_that_a_command_ended_without_is_dropped_and_the_port_goes_on(home: Home, cas: Cas) -> None:
    def end(channel: asyncssh.SSHServerChannel[bytes]) -> None:
        channel.write(b"enough")
        channel.exit(3)

    async with asyncio.timeout(30), local_port(home, cas, end) as port:
        for _ in range(2):
            async with connected(port) as client:
                found = await client.run("head -c 0", input=b"unread" * 10_000, encoding=None)
                assert (found.stdout, found.exit_status) == (b"enough", 3)


async def test_a_client_that_reads_little_has_no_more_than_a_window_wait_for_it(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    fars: list[Any] = []
    held: list[int] = []
    arrived = sshlocal._FarSession.data_received

    def received(self: Any, data: bytes, datatype: int | None) -> None:
        arrived(self, data, datatype)
        (far,) = fars
        held.append(sum(len(one) for one, _ in far._recv_buf) + far._recv_window)

    make = sshlocal._FarSession.connection_made

    def made(self: Any, chan: Any) -> None:
        make(self, chan)
        fars.append(chan)

    monkeypatch.setattr(sshlocal._FarSession, "data_received", received)
    monkeypatch.setattr(sshlocal._FarSession, "connection_made", made)

    def end(channel: asyncssh.SSHServerChannel[bytes]) -> None:
        channel.write(OUTPUT)
        channel.exit(0)

    async with asyncio.timeout(30), local_port(home, cas, end) as port, connected(port) as client:
        process = await client.create_process("all of it", encoding=None, window=4096, max_pktsize=1024)
        taken = bytearray()
        while piece := await process.stdout.read(1024):
            taken += piece
    assert bytes(taken) == OUTPUT
    assert 0 < max(held) <= WINDOW
