"""`tsh proxy ssh --listen`: a local port that leads to a node, for SSH clients that know no proxy command.

Belongs here: that port. With `--tunnel` tsh is the client of the node, with the user's certificate, and the server of
whoever connects, who needs none: sessions are joined, and nothing else is served. Does not belong here: the way to the
node (ssh.py), who may listen where (listening.py).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncssh

from monoport.auth.keys import generate
from monoport.client import files
from monoport.client.foreground import until_stopped
from monoport.client.front import Front
from monoport.client.joined import Joined, came_from
from monoport.client.listening import address_of, listen
from monoport.client.names import Address
from monoport.client.profile import Home, UserFiles
from monoport.client.ssh import Target, client_options, open_node, proxy_link
from monoport.errors import Failure
from monoport.net.meter import Meter
from monoport.net.relay import relay
from monoport.net.sockets import SocketStream
from monoport.tunnel.link import AGENT_LOGIN, PACKET, WINDOW, ClientLink, ServerLink, algorithms, calling, serving
from monoport.tunnel.packets import quick

CONNECTIONS = 64  # at once: FileZilla opens up to ten for its transfers
SESSIONS = 10  # of one connection, as sshd
LOOPBACK = ("127.0.0.1", 0)  # what asyncssh is told of the local peer

Start = Callable[[Coroutine[Any, Any, None]], object]


@dataclass(frozen=True, slots=True)
class Local:
    """What `--listen` says: where, to which node, and whether the user's identity is lent."""

    target: Target
    listen: str
    tunnel: bool
    share_identity: bool = False


async def serve(
    home: Home, proxy: str | None, wanted: Local, *, announce: Callable[[str], None], report: Callable[[str], None]
) -> None:
    """Serve the port until stopped by a signal.

    Args:
        home, proxy: where the login is; it is read anew for each connection.
        wanted: what to serve.
        announce: called with one line that says how to connect.
        report: with one for each connection that fails or breaks off.

    Raises:
        Failure: not logged in, or it cannot listen there.
    """
    home.choose(proxy, wanted.target.host).check()
    address = Address.parse(wanted.listen, None, "local address", least_port=0)
    sockets = listen(address, lends_identity=wanted.tunnel, share_identity=wanted.share_identity)
    bound = address_of(sockets)
    announce(f"{bound} leads to {wanted.target.host}: ssh -p {bound.port} LOGIN@{bound.host}   (Ctrl-C ends it)")
    slots = asyncio.Semaphore(CONNECTIONS)
    loop = asyncio.get_running_loop()

    async def one(local: SocketStream, joined: Joined, start: Start) -> None:
        try:
            async with local:
                await _join(home, proxy, wanted, local, joined, start)
        except Failure as error:
            report(str(error))
        except asyncssh.Error as error:
            report(f"{wanted.target.host}: {error.reason}{joined.origin}")
        except (ConnectionError, TimeoutError) as error:  # the other end knows
            joined.broke(error)
        finally:
            slots.release()

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                accepted, peer = await loop.sock_accept(sockets[0])
                joined = Joined(came_from(peer), report)
                group.create_task(one(SocketStream(accepted), joined, group.create_task))

    with sockets[0]:
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(accept())
            await until_stopped()
            accepting.cancel()


async def _join(  # noqa: PLR0917 - the port's, the connection's
    home: Home, proxy: str | None, wanted: Local, local: SocketStream, joined: Joined, start: Start
) -> None:
    profile, host = home.choose(proxy, wanted.target.host), wanted.target.host
    paths = home.keys(profile)
    async with (
        proxy_link(Front(profile), paths, wanted.target.login) as link,
        await open_node(link, wanted.target) as node,
    ):
        joined.begin(link.get_extra_info("origin", ""))
        if not wanted.tunnel:
            meter = Meter()
            await relay(local, node, meter=meter)
            joined.over(meter)
            return
        owner = _Server(start)
        async with serving(local, _server_options(paths), ServerLink, owner, LOOPBACK) as made:
            options = client_options(profile, paths, owner.login, host)
            try:
                async with calling(node, options, ClientLink, (host, 0)) as upstream:
                    owner.upstream.set_result(upstream)
                    await made.wait_closed()
            except asyncssh.Error as error:
                made.disconnect(asyncssh.DISC_BY_APPLICATION, f"{host}: {error.reason}")
                await made.wait_closed()
                raise
            finally:
                owner.upstream.cancel()


def _server_options(paths: UserFiles) -> Any:
    """Of the local server; its key stays the same, so that a client that remembers it asks once."""
    path = paths.folder / "local_host_key"
    if not path.exists():
        files.replace(path, generate().private.encode())
    return asyncssh.SSHServerConnectionOptions(
        server_host_keys=[asyncssh.import_private_key(path.read_text())],
        login_timeout=AGENT_LOGIN,
        gss_host=None,
        agent_forwarding=False,
        x11_forwarding=False,
        line_editor=False,
        encoding=None,
        window=WINDOW,
        max_pktsize=PACKET,
        server_version="tsh",
        **algorithms(),
    )


class _Server(asyncssh.SSHServer):
    """Answers whoever connects to the local port: nobody is asked who they are, since the port is the user's own."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._sessions = 0
        self.login = ""
        self.upstream: asyncio.Future[ClientLink] = asyncio.get_running_loop().create_future()

    def begin_auth(self, username: str) -> bool:
        self.login = username
        return False

    def session_requested(self) -> Awaitable[asyncssh.SSHServerSession[bytes]]:
        return self._session()

    async def _session(self) -> "asyncssh.SSHServerSession[bytes]":
        if self._sessions >= SESSIONS:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, f"more than {SESSIONS} sessions")
        try:
            upstream = await asyncio.shield(self.upstream)
        except asyncio.CancelledError:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the node is not reached") from None
        self._sessions += 1
        return _LocalSession(upstream, self._start, self._gone)

    def _gone(self) -> None:
        self._sessions -= 1


class _LocalSession(asyncssh.SSHServerSession[bytes]):
    """One session of the local client, joined with one on the node."""

    def __init__(self, upstream: ClientLink, start: Start, gone: Callable[[], None]) -> None:
        self._upstream, self._start, self._gone = upstream, start, gone
        self._asked: dict[str, Any] = {}
        self._far: asyncssh.SSHClientChannel[bytes] | None = None
        self._early: list[bytes] = []  # what comes before the node's session is open: one window at most
        self._early_end = False
        self._full = self._lost = False  # the local client does not read; it has gone
        self.channel: asyncssh.SSHServerChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self.channel = chan
        quick(chan)

    def pty_requested(self, term_type: str, term_size: Any, term_modes: Mapping[int, int]) -> bool:
        self._asked.update(term_type=term_type, term_size=term_size, term_modes=term_modes, request_pty="force")
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._asked["command"] = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self._asked.update(command=subsystem, subsystem=True)
        return True

    def session_started(self) -> None:
        assert self.channel is not None
        self._start(self._open(self.channel))

    async def _open(self, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        asked = {"request_pty": False, "encoding": None, "env": dict(channel.get_environment()), **self._asked}
        subsystem, command = asked.pop("subsystem", False), asked.pop("command", None)
        words = {"subsystem": command} if subsystem else {"command": command}
        try:
            far, _ = await self._upstream.create_session(
                lambda: _FarSession(channel), **words, **asked, window=WINDOW, max_pktsize=PACKET
            )
        except (asyncssh.Error, OSError) as error:
            if not channel.is_closing():
                channel.write_stderr(f"tsh: {error}\r\n".encode())
                channel.exit(255)
            return
        self._far = far
        if self._lost:
            far.close()
            return
        if self._full:
            far.pause_reading()
        for data in self._early:
            self.data_received(data, None)
        self._early.clear()
        if self._early_end:
            far.write_eof()
        channel.resume_reading()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._far is not None:
            if (
                not self._far.is_closing()
            ):  # a command that has ended reads no more: as a pipe without a reader, drop it
                self._far.write(data)
        elif self.channel is not None:
            self._early.append(data)
            self.channel.pause_reading()

    def eof_received(self) -> bool:
        if self._far is not None:
            self._far.write_eof()
        self._early_end = True
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._far is not None:
            with suppress(OSError):  # its command has just ended
                self._far.change_terminal_size(width, height, pixwidth, pixheight)

    def signal_received(self, signal: str) -> None:
        if self._far is not None:
            with suppress(OSError):
                self._far.send_signal(signal)

    def pause_writing(self) -> None:
        self._full = True
        if self._far is not None:
            self._far.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._far is not None:
            self._far.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._gone()
        if self._far is not None:
            self._far.close()


class _FarSession(asyncssh.SSHClientSession[bytes]):
    """The node's end of a session; what it says goes to the local client's channel.

    An exit status overtakes output that waits on its way, here and at the node: it is passed on behind the last byte.
    """

    def __init__(self, local: asyncssh.SSHServerChannel[bytes]) -> None:
        self._local = local
        self._exit: Callable[[], None] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        quick(chan)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if not self._local.is_closing():
            self._local.write(data, datatype)

    def eof_received(self) -> bool:
        if not self._local.is_closing():
            self._local.write_eof()
        return True

    def exit_status_received(self, status: int) -> None:
        self._exit = partial(self._local.exit, status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._exit = partial(self._local.exit_with_signal, signal, core_dumped, msg, lang)

    def pause_writing(self) -> None:
        self._local.pause_reading()

    def resume_writing(self) -> None:
        self._local.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exit is not None and exc is None:
            self._exit()
        else:
            self._local.close()
