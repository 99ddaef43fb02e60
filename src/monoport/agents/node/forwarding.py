"""What one connection forwards: to and from the node, its user's agent, X11. Every channel is decided by itself.

Belongs here: recording, joining a socket to a channel. Not here: the right to it (`rights`), opening sockets, which a
child does with the login user's rights (`opener`), logging in and sessions (`server`, `session`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import asyncssh
import structlog

from monoport.access.forwarding import Forwarding
from monoport.agents.node import display
from monoport.agents.node.opener import Opener
from monoport.agents.node.rights import KINDS, Refused, Rights, User
from monoport.agents.node.standing import Listener, Record, Standing, address
from monoport.audit.log import Log
from monoport.errors import Failure
from monoport.net.sockets import SocketStream, keep_alive
from monoport.tunnel import link
from monoport.tunnel.channel import ChannelSession, join

FORWARDED = 256  # forwarded connections at one time, both ways: a browser behind `ssh -D` opens dozens
LISTENERS = 32  # of one connection, each of which holds a port or a socket of the node
DISPLAYS = 10  # of one connection, as many as it may have sessions
UNPRIVILEGED = 1_024  # the first port that is not root's (ip(7)); some systems let anybody have the others
OPEN_SECONDS = 30.0  # for the client to take a channel that something on the node has asked for

Starter = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
Opened = Callable[[Callable[[], ChannelSession]], Awaitable[object]]

_ANY = {"": ("0.0.0.0", "::"), "*": ("0.0.0.0", "::"), "localhost": ("127.0.0.1", "::1")}  # noqa: S104  (RFC 4254, 7.1)


class Forwards:
    """Everything that one logged-in connection forwards.

    Args: the connection, who it is, where events go, what runs a coroutine beside the connection, and the log.
    """

    def __init__(
        self,
        client: link.ServerLink,
        user: User,
        audit: Log,
        start: Starter,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._client: link.ServerLink | None = client
        self._user, self._audit, self._start, self._log = user, audit, start, log
        self.rights = Rights(client, user, audit, log)
        self._opener = Opener(user.account, log)
        self._room = asyncio.Semaphore(FORWARDED)
        self._standing: list[Standing] = []
        self._displays: dict[object, Standing] = {}
        self._making = 0  # displays that the child is asked for
        self._agent: Standing | None = None

    # to the node: ssh -L, -D, -W

    def to_port(self, host: str, port: int) -> Awaitable[ChannelSession]:
        """Answer a direct-tcpip channel (RFC 4254 section 7.2)."""
        return self._to(Forwarding.PORT, address(host, port), lambda: self._opener.tcp(host, port))

    def to_path(self, path: str) -> Awaitable[ChannelSession]:
        """Answer a direct-streamlocal@openssh.com channel (OpenSSH's PROTOCOL, section 2.4)."""
        return self._to(Forwarding.UNIX, path, lambda: self._opener.unix(_path(path)))

    async def _to(
        self, kind: Forwarding, target: str, connect: Callable[[], Awaitable[socket.socket]]
    ) -> ChannelSession:
        try:
            rule = await self.rights.allow(kind, target)
        except Refused as refused:
            code = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
            raise asyncssh.ChannelOpenError(code, self.rights.traced(str(refused))) from refused
        if self._room.locked():
            reason = self.rights.traced(f"more than {FORWARDED} connections")
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, reason)
        await self._room.acquire()
        record = Record(self._audit, {**self._user.facts, "kind": KINDS[kind][0], "target": target})
        try:
            await record.begin(rule)
            found = await connect()
        except (OSError, ValueError, Failure) as error:
            self._room.release()
            await record.end(str(error))
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, self.rights.traced(str(error))) from error
        except BaseException:
            self._room.release()
            raise
        session = ChannelSession()
        _ = self._start(self._joined(session, found, record))
        return session

    async def _joined(self, session: ChannelSession, found: socket.socket, record: Record) -> None:
        try:
            keep_alive(found)
            await join(session, SocketStream(found), record.meter)
        finally:
            self._room.release()
            await record.end()

    # from the node: ssh -R

    async def from_port(self, host: str, port: int) -> Listener | bool:
        """Answer a tcpip-forward request (RFC 4254 section 7.1); False: refused, and the client knows why."""
        target = address(host, port)
        hosts = _ANY.get(host, (host,))
        try:
            rule = await self.rights.allow(Forwarding.REMOTE_PORT, target)
            if not _on_loopback(hosts):
                rule += f", {await self.rights.allow(Forwarding.GATEWAY, target)}"
            if 0 < port < UNPRIVILEGED and self._user.account.uid != 0:
                reason = f"ports below {UNPRIVILEGED} are root's"
                raise await self.rights.refused(Forwarding.REMOTE_PORT, reason, "the login is not root", target)
            self._one_more()
            found = await self._opener.listen(hosts, port)
            bound = int(found[0].getsockname()[1])  # another than was asked for, if that was 0: any
            standing = Standing(Forwarding.REMOTE_PORT, address(host, bound), found)
            await self._listens("remote_port", standing, rule)
        except (OSError, ValueError, Failure) as error:
            self.rights.tell(f"remote forwarding of {target}", error)
            return False

        def opened(peer: tuple[str, int]) -> Opened:
            return lambda factory: self._made().create_connection(
                factory, host, bound, *peer, window=link.WINDOW, max_pktsize=link.PACKET
            )

        self._stand(standing, opened)
        return Listener(bound, lambda: self._end(standing))

    async def from_path(self, path: str) -> Listener | bool:
        """Answer a streamlocal-forward@openssh.com request (OpenSSH's PROTOCOL, section 2.4); False: refused."""
        try:
            rule = await self.rights.allow(Forwarding.REMOTE_UNIX, path)
            self._one_more()
            standing = Standing(Forwarding.REMOTE_UNIX, path, [await self._opener.listen_unix(_path(path))], path)
            await self._listens("remote_unix", standing, rule)
        except (OSError, ValueError, Failure) as error:
            self.rights.tell(f"remote forwarding of {path}", error)
            return False

        def opened(_peer: tuple[str, int]) -> Opened:
            return lambda factory: self._made().create_unix_connection(
                factory, path, window=link.WINDOW, max_pktsize=link.PACKET
            )

        self._stand(standing, opened)
        return Listener(0, lambda: self._end(standing))

    async def _listens(self, kind: str, standing: Standing, rule: str) -> None:
        """Record what listens now, before any connection to it is taken; where that fails, it listens no more."""
        try:
            await self._audit.emit("port.listen", **self._user.facts, kind=kind, target=standing.target, rule=rule)
        except BaseException:
            standing.stop()
            if standing.path:
                self._opener.remove(standing.path)
            raise

    def _one_more(self) -> None:
        if len(self._standing) >= LISTENERS:
            raise Refused(f"more than {LISTENERS} listeners")

    # the user's agent and displays

    async def agent(self) -> str | None:
        """Offer the user's agent on a socket of the user's own, once; return its path, None where that is refused."""
        try:
            rule = await self.rights.allow(Forwarding.AGENT, "")
            if self._agent is None:
                await self._audit.emit("agent.forward", **self._user.facts, rule=rule)
                path, listening = await self._opener.agent()
                self._agent = Standing(Forwarding.AGENT, path, [listening], path)
                self._stand(self._agent, lambda _peer: self._to_agent)
        except (OSError, Failure) as error:
            self._log.warning("agent not forwarded", error=str(error))
            return None
        return self._agent.path

    async def _to_agent(self, factory: Callable[[], ChannelSession]) -> None:
        await self._made().create_agent_channel(window=link.WINDOW, max_pktsize=link.PACKET).open(factory)

    async def display(
        self, channel: asyncssh.SSHServerChannel[bytes], protocol: bytes, cookie: bytes, screen: int
    ) -> str | None:
        """Offer the user's display to one session (RFC 4254 section 6.3); return DISPLAY, None where that is refused.

        The cookie is the client's own invention, which it replaces by the real one: that never comes here.
        """
        try:
            rule = await self.rights.allow(Forwarding.X11, "")
            if not display.fits(protocol, cookie):
                raise Refused("an authorisation that no display takes")
            if len(self._displays) + self._making >= DISPLAYS:
                raise Refused(f"more than {DISPLAYS} displays")
            self._making += 1
            try:
                await self._audit.emit("x11.forward", **self._user.facts, rule=rule)
                number, path, found = await self._opener.display(protocol.decode("ascii"), cookie)
            finally:
                self._making -= 1
        except (OSError, ValueError, Failure) as error:
            self.rights.tell("X11 forwarding", error)
            return None
        if channel.is_closing():  # meanwhile: it was detached before it had any
            Standing(Forwarding.X11, "", found).stop()
            self._opener.remove(path)
            return None
        name = f"localhost:{number}.{screen}"
        standing = self._displays[channel] = Standing(Forwarding.X11, name, found, path, name)

        def opened(peer: tuple[str, int]) -> Opened:
            return lambda factory: self._to_display(factory, peer)

        self._stand(standing, opened)
        return name

    async def _to_display(self, factory: Callable[[], ChannelSession], peer: tuple[str, int]) -> None:
        await self._made().create_x11_channel(window=link.WINDOW, max_pktsize=link.PACKET).open(factory, *peer)

    def end_display(self, channel: object) -> None:
        """A session that may have had a display is over."""
        standing = self._displays.pop(channel, None)
        if standing is not None:
            self._end(standing)

    def environment(self, channel: object) -> dict[str, str]:
        """What a session's programs must know of what is forwarded to them."""
        found = {"SSH_AUTH_SOCK": self._agent.path} if self._agent is not None else {}
        if (standing := self._displays.get(channel)) is not None:
            found |= {"DISPLAY": standing.name, "XAUTHORITY": standing.path}
        return found

    # connections that something on the node has made

    def _stand(self, standing: Standing, opened: Callable[[tuple[str, int]], Opened]) -> None:
        self._standing.append(standing)
        if self._client is None:  # the connection has gone while the child was asked
            self._end(standing)
            return
        for one in standing.sockets:
            task = self._start(self._accept(standing, one, opened))
            task.add_done_callback(partial(_closed, one))
            standing.tasks.append(task)

    async def _accept(
        self, standing: Standing, listening: socket.socket, opened: Callable[[tuple[str, int]], Opened]
    ) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            found, peer = await loop.sock_accept(listening)
            try:
                await self._room.acquire()
            except BaseException:
                found.close()
                raise
            origin = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
            _ = self._start(self._accepted(standing, found, opened(origin), address(*origin) if origin[0] else ""))

    async def _accepted(self, standing: Standing, found: socket.socket, opened: Opened, origin: str) -> None:
        facts = {**self._user.facts, "kind": KINDS[standing.kind][0], "target": standing.target, "origin": origin}
        record = Record(self._audit, facts)
        session = ChannelSession()
        keep_alive(found)
        near = SocketStream(found)
        said = ""
        try:
            await record.begin(await self.rights.allow(standing.kind, standing.target))
            async with asyncio.timeout(OPEN_SECONDS):
                await opened(lambda: session)
            await join(session, near, record.meter)
        except Refused:
            self._end(standing)  # a right that has ended: what listens by it ends too
        except (asyncssh.ChannelOpenError, TimeoutError) as error:
            said = str(error) or "the client does not answer"
            self._log.info("the client does not take a forwarded connection", error=said)
        finally:
            near.close()
            self._room.release()
            await record.end(said)

    def _made(self) -> link.ServerLink:
        if self._client is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the connection is gone")
        return self._client

    def _end(self, standing: Standing) -> None:
        if standing not in self._standing:
            return
        self._standing.remove(standing)
        if standing is self._agent:
            self._agent = None
        standing.stop()
        if standing.path:
            self._opener.remove(standing.path)

    # the end

    def close(self) -> None:
        """The connection is gone: stop listening and let the child go; it may be called again."""
        self._client = None
        self.rights.close()
        for standing in self._standing[:]:
            self._end(standing)
        self._opener.close()

    async def wait_closed(self) -> None:
        """Wait until what was made for the user is gone."""
        await self._opener.wait_closed()


def _closed(listening: socket.socket, _task: object) -> None:
    listening.close()


def _on_loopback(hosts: Sequence[str]) -> bool:
    """Whether these are addresses of this machine for itself; a name is none, whatever it may resolve to."""
    try:
        return all(ipaddress.ip_address(host).is_loopback for host in hosts)
    except ValueError:
        return False


def _path(path: str) -> str:
    """Return the path of a Unix socket; raises ValueError for names outside the file system: no rights guard those."""
    if not path or "\0" in path:
        raise ValueError("not the path of a socket")
    return path
