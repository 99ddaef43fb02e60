"""The SSH server of one connection: who is let in, and which of SSH's many requests are served.

Belongs here: authentication by certificate, the permit, default deny. Not here: what a session or a forwarded
connection does once it is allowed (`session`, `forwarding`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, assert_never

import asyncssh
import structlog

from monoport.access.decide import Denied, Permit
from monoport.access.identity import Identity, IdentityError, Kind
from monoport.agents.node import account, forwarding
from monoport.agents.node.account import Account, AccountError
from monoport.agents.node.session import Host, Session
from monoport.audit.log import Log
from monoport.errors import Failure, traced
from monoport.net.sockets import SocketStream
from monoport.tunnel import link
from monoport.tunnel.channel import ChannelSession, join

SESSIONS = 10  # sshd's MaxSessions
FORWARDED = 256  # forwarded connections at one time: a browser behind `ssh -D` opens dozens
DENIALS = 64  # of one connection, each of which is an event on disk
AGENT_CLIENTS = 32  # programs that talk to the forwarded agent at one time

Starter = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@dataclass(frozen=True, slots=True)
class Admission:
    """Someone was let in: who, as which login, by which permit."""

    identity: Identity
    permit: Permit
    account: Account


@dataclass(frozen=True, slots=True)
class Gate:
    """What decides about a login, for one connection.

    identify: reads and verifies an SSH certificate; raises IdentityError. authorize: asks for a login by the node's own
    knowledge. expected: the identity that the proxy announced.
    """

    identify: Callable[[bytes], Identity]
    authorize: Callable[[Identity, str], Permit | Denied]
    expected: Identity


class NodeLink(link.ServerLink):
    """A user's connection to the node; what asyncssh would decide by itself is asked of the server instead."""

    @property
    def server(self) -> NodeServer | None:
        """Who answers for this connection while it lasts."""
        owner = self.get_owner()
        return owner if isinstance(owner, NodeServer) else None

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        self.attempt()
        server = self.server
        if server is None or not await server.admit(username, key_data):
            return False
        return await super().validate_public_key(username, key_data, msg, signature)

    def certified(self, permission: str) -> bool:
        """Whether the user's certificate permits it (permit-agent-forwarding, permit-port-forwarding)."""
        return super().check_certificate_permission(permission)

    def check_certificate_permission(self, permission: str) -> bool:
        # what is forwarded is decided, and recorded, by the server's own hooks
        return permission == "port-forwarding" or super().check_certificate_permission(permission)

    async def create_agent_listener(self) -> bool:
        return self.server is not None and await self.server.agent_requested()

    def get_agent_path(self) -> str | None:
        return self.server.host.agent_path if self.server is not None and self.server.host else None

    async def attach_x11_listener(self, chan: Any, auth_proto: bytes, auth_data: bytes, screen: int) -> str | None:
        if self.server is not None:
            await self.server.denied("x11", "X11 forwarding is not served")
        return None


class NodeServer(asyncssh.SSHServer):
    """Answers for one connection.

    Args: who decides about logins, where events go, what is known of the connection (connection, user, source, node),
    the user's address, what runs a coroutine beside the connection, and the log.
    """

    def __init__(
        self,
        gate: Gate,
        audit: Log,
        facts: Mapping[str, Any],
        *,
        source: tuple[str, int],
        start: Starter,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._gate, self._audit, self._facts, self._start, self._log = gate, audit, dict(facts), start, log
        self.source = source
        self._link: NodeLink | None = None
        self._refusals: set[str] = set()  # said once, although clients ask twice for every key
        self._sessions = self._forwarded = self._denials = 0
        self._opener: forwarding.Opener | None = None
        self._accepting: asyncio.Task[None] | None = None
        self.admission: Admission | None = None
        self.host: Host | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._link = conn if isinstance(conn, NodeLink) else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._link = None
        if self.host is not None:
            self.host.cut = True
        if self._accepting is not None:
            self._accepting.cancel()
        if self._opener is not None:
            self._opener.close()

    @property
    def sessions(self) -> int:
        """How many shells, commands and file transfers it runs."""
        return self._sessions

    async def wait_closed(self) -> None:
        """Wait until what was opened for the user is gone, after the connection."""
        if self._opener is not None:
            await self._opener.wait_closed()

    # authentication

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return self.admission is not None  # `admit` has checked this very certificate against the user CA

    async def admit(self, login: str, certificate: bytes) -> bool:
        """Decide about a certificate and a login; what asyncssh checks besides is the signature."""
        self.admission = None
        if not link.certifies(certificate):
            return False  # no attempt worth a record
        try:
            identity = self._gate.identify(certificate)
        except IdentityError as error:
            await self._refuse(f"certificate refused: {error}", str(error), login)
            return False
        same = (identity.kind, identity.name, identity.cluster)
        expected = self._gate.expected
        if identity.kind is not Kind.USER or same != (expected.kind, expected.name, expected.cluster):
            await self._refuse("certificate refused", f"{identity} is not {expected}, whom the proxy announced", login)
            return False
        if login not in identity.principals:
            await self._refuse(f"login {login} is not allowed", "the certificate has no such principal", login)
            return False
        decided = self._gate.authorize(identity, login)
        match decided:
            case Denied(reason, rule):
                await self._refuse(reason, rule, login)
                return False
            case Permit():
                return await self._open_account(identity, decided, login)
            case _:
                assert_never(decided)

    async def _open_account(self, identity: Identity, permit: Permit, login: str) -> bool:
        try:
            found = await asyncio.to_thread(account.find, login)
        except AccountError as error:
            await self._refuse(str(error), "the account on the node", login)
            return False
        self.admission = Admission(identity, permit, found)
        return True

    async def _refuse(self, reason: str, rule: str, login: str) -> None:
        """Record what was refused and why, once for each reason, and say the first."""
        if reason in self._refusals or self._link is None:
            return
        self._refusals.add(reason)
        self._log.warning("login refused", login=login, reason=reason, rule=rule)
        await self._audit.emit("session.deny", **self._facts, login=login, what="login", reason=reason, rule=rule)
        if self._link is not None:
            self._link.refused(self._traced(reason))

    def _traced(self, reason: str) -> str:
        return traced(reason, self._facts["connection"])

    def auth_completed(self) -> None:
        admission = self.admission
        assert admission is not None
        self._facts["login"] = admission.account.login
        self.host = Host(admission.account, self._audit, self._facts, self.source, self._start, self._log)

    # sessions

    def session_requested(self) -> Session | bool:
        if self.host is None or self._sessions >= SESSIONS:
            self._log.info("session refused", limit=SESSIONS)
            return False
        self._sessions += 1
        return _Counted(self.host, self._one_session_less)

    def _one_session_less(self) -> None:
        self._sessions -= 1

    # forwarding

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Awaitable[ChannelSession]:
        return self._forward(f"{dest_host}:{dest_port}", lambda opener: opener.tcp(dest_host, dest_port))

    def unix_connection_requested(self, dest_path: str) -> Awaitable[ChannelSession]:
        return self._forward(dest_path, lambda opener: opener.unix(dest_path))

    async def _forward(
        self, target: str, connect: Callable[[forwarding.Opener], Awaitable[socket.socket]]
    ) -> ChannelSession:
        admission, secure = self.admission, self._link
        if admission is None or secure is None:
            _prohibit("the connection is closing")
        if not admission.permit.options.port_forwarding or not secure.certified("port-forwarding"):
            await self.denied("port", "port forwarding is not allowed", target=target)
            _prohibit(self._traced("port forwarding is not allowed"))
        if self._forwarded >= FORWARDED:
            reason = self._traced(f"more than {FORWARDED} connections")
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, reason)
        self._forwarded += 1
        try:
            await self._audit.emit("port.forward", **self._facts, target=target)
            found = await connect(self._open())
        except (OSError, ValueError, Failure) as error:
            self._forwarded -= 1
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, self._traced(str(error))) from error
        except BaseException:
            self._forwarded -= 1
            raise
        session = ChannelSession()
        _ = self._start(self._joined(session, found))
        return session

    async def _joined(self, session: ChannelSession, found: socket.socket) -> None:
        try:
            await join(session, SocketStream(found))
        finally:
            self._forwarded -= 1

    def _open(self) -> forwarding.Opener:
        if self._opener is None:
            assert self.admission is not None
            self._opener = forwarding.Opener(self.admission.account)
        return self._opener

    async def agent_requested(self) -> bool:
        """Offer the user's agent on a socket of the user's own, where role and certificate allow it."""
        admission, secure = self.admission, self._link
        if admission is None or secure is None or self.host is None:
            return False
        if not admission.permit.options.forward_agent or not secure.certified("agent-forwarding"):
            await self.denied("agent", "agent forwarding is not allowed")
            return False
        if self.host.agent_path is None:
            await self._audit.emit("agent.forward", **self._facts)
            try:
                path, listening = await self._open().agent()
            except OSError as error:
                self._log.error("agent not forwarded", error=str(error))
                return False
            listening.setblocking(False)
            self.host.agent_path = path
            self._accepting = self._start(self._accept(listening))
        return True

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(AGENT_CLIENTS)
        with listening:
            while self._link is not None:
                await room.acquire()
                found, _ = await loop.sock_accept(listening)
                _ = self._start(self._agent_client(found, room))

    async def _agent_client(self, found: socket.socket, room: asyncio.Semaphore) -> None:
        session = ChannelSession()
        near = SocketStream(found)
        try:
            if self._link is not None:
                channel = self._link.create_agent_channel(window=link.WINDOW, max_pktsize=link.PACKET)
                await channel.open(lambda: session)
                await join(session, near)
        except asyncssh.ChannelOpenError as error:
            self._log.info("the client does not take its agent's connection", error=str(error))
        finally:
            near.close()
            room.release()

    # what is never served

    def server_requested(self, listen_host: str, listen_port: int) -> Awaitable[bool]:
        return self._no_listener(f"{listen_host}:{listen_port}")

    def unix_server_requested(self, listen_path: str) -> Awaitable[bool]:
        return self._no_listener(listen_path)

    async def _no_listener(self, target: str) -> bool:
        await self.denied("remote_port", "remote forwarding is not served", target=target)
        return False

    def tun_requested(self, unit: int | None) -> bool:
        return False

    def tap_requested(self, unit: int | None) -> bool:
        return False

    async def denied(self, what: str, reason: str, **more: object) -> None:
        """Record that something was asked for and refused; a client that goes on and on is sent away."""
        self._denials += 1
        if self._denials > DENIALS and self._link is not None:
            reason = self._traced(f"more than {DENIALS} refused requests")
            self._link.disconnect(asyncssh.DISC_BY_APPLICATION, reason)
            return
        self._log.info("refused", what=what, reason=reason, **more)
        await self._audit.emit("session.deny", **self._facts, what=what, reason=reason, **more)


class _Counted(Session):
    """A session that says when its channel is gone."""

    def __init__(self, host: Host, gone: Callable[[], object]) -> None:
        super().__init__(host)
        self._gone = gone

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        super().connection_lost(exc)


def _prohibit(reason: str) -> NoReturn:
    raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
