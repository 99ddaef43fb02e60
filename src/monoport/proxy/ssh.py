"""The SSH proxy service: users prove a certificate, then every channel to a node is decided by itself.

Belongs here: direct-tcpip channels to nodes, and refusing everything else. Not here: the session on the node, which the
node's agent decides about again and which is encrypted between the user's client and the node, end to end.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol, assert_never

import asyncssh
import structlog

from monoport.access.decide import Denied, Permit, Ssh, authorize
from monoport.access.identity import NO_LOGIN, ClusterCas, Identity, IdentityError, Kind, from_ssh
from monoport.access.resources import Lock, Node, Role
from monoport.audit.log import Log
from monoport.errors import Failure, traced
from monoport.net.stream import Stream
from monoport.proxy.connection import Connection
from monoport.proxy.source import shown
from monoport.tunnel import link
from monoport.tunnel.channel import ChannelSession, join
from monoport.tunnel.dial import DENIED, DialError
from monoport.tunnel.preface import Kind as Wanted
from monoport.tunnel.preface import Preface
from monoport.tunnel.proxy import AgentRow

CHANNELS = 64  # nodes that one connection may reach at one time: 32 MiB at worst if every one of them stalls
MAX_NAME = 255  # characters of a name asked for, as in DNS
TSH = "SSH-2.0-tsh"  # how `tsh` introduces itself
HINT = (
    "monoport: this is the proxy, not a node. Connect through it: tsh ssh LOGIN@NODE, or\r\n"
    'ssh -o "ProxyCommand tsh proxy ssh --user=%r %h:%p" LOGIN@NODE, or ssh -J PROXY:PORT LOGIN@NODE\r\n'
)

_log = structlog.get_logger()


class Directory(Protocol):
    """What the service needs to know of the cluster; `auth.cache.Cache` is one."""

    @property
    def cas(self) -> ClusterCas: ...
    @property
    def roles(self) -> Mapping[str, Role]: ...
    @property
    def locks(self) -> Iterable[Lock]: ...
    def nodes(self) -> Sequence[Node]: ...


class Dialer(Protocol):
    """Who opens a stream to the agent of a permit's node; `tunnel.proxy.Tunnels` is one."""

    async def dial(self, permit: Permit, preface: Preface) -> Stream: ...
    def agents(self) -> Sequence[AgentRow]: ...


class SshProxy:
    """Serves connections that routing sent to the SSH proxy.

    Args:
        host: this proxy's key and host certificate, asked for on every connection since certificates are renewed.
        tunnels: opens streams to nodes.
        directory: CAs, roles, locks and nodes of the cluster.
        audit: where refusals are recorded; the node records its sessions.
        now: UTC time.
    """

    def __init__(
        self,
        host: Callable[[], link.HostKey],
        tunnels: Dialer,
        directory: Directory,
        audit: Log,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._host, self._tunnels, self._directory, self._audit, self._now = host, tunnels, directory, audit, now

    async def serve(self, connection: Connection) -> None:
        """Serve one user's connection to its end."""
        options, source = self.options(), connection.source
        async with (
            self.answering(connection) as owner,
            link.serving(connection.stream, options, UserLink, owner, source) as made,
        ):
            await attend(made, connection)

    def options(self) -> Any:
        """Options of the SSH server that users sign in to."""
        return link.server_options(self._host(), link.USER_LOGIN, link.TUNNEL_PACKET)

    @asynccontextmanager
    async def answering(self, connection: Connection) -> AsyncIterator[Users]:
        """What answers for one user's connection, whose channels end with the body, and whose end is no error."""
        log = _log.bind(connection=connection.id, source=shown(connection.source))
        async with asyncio.TaskGroup() as group:

            def start(work: Coroutine[Any, Any, None]) -> None:
                group.create_task(_guarded(work, log))

            try:
                yield Users(self, connection, start, log)
            except (asyncssh.Error, OSError) as error:
                reason = str(error) or type(error).__name__
                unknown = connection.identity is None
                connection.ended = connection.ended or (f"not signed in: {reason}" if unknown else reason)
                log.info("ssh connection closed", reason=reason)

    def identify(self, certificate: bytes) -> Identity:
        """Return the user that a certificate proves; raises IdentityError."""
        identity = from_ssh(certificate, self._directory.cas, self._now())
        if identity.kind is not Kind.USER:
            raise IdentityError(f"{identity} is a host, not a user")
        return identity

    async def reach(
        self, connection: Connection, identity: Identity, certificate: str, name: str, login: str | None = None
    ) -> Stream:
        """Return a stream to the node of that name; raises DialError with what was refused, and records why.

        login: what tsh says is wanted on the node. It is decided about here only where sshd serves the sessions, since
        sshd cannot say why it refuses; the node's agent decides about the login that really comes.
        """
        name = name[:MAX_NAME].rstrip(".").lower()
        node = self._find(name)
        action = Ssh(login if node.spec.openssh else None)
        decided = authorize(identity, node, action, self._directory.roles, self._directory.locks, self._now())
        match decided:
            case Denied(reason, rule):
                await self._deny(connection, identity, node, reason, rule)
                raise DialError(reason, DENIED)
            case Permit():
                preface = Preface(connection.id, Wanted.SSH, node.metadata.name, certificate, shown(connection.source))
                return await self._tunnels.dial(decided, preface)
            case _:
                assert_never(decided)

    def _find(self, name: str) -> Node:
        """Return the node called so by nodename, nodename.<cluster> or host id; raises DialError."""
        short = name.removesuffix(f".{self._directory.cas.cluster.lower()}")
        nodes = self._directory.nodes()
        found = [node for node in nodes if node.metadata.name.lower() == name]
        found = found or [node for node in nodes if node.spec.hostname.lower() in {name, short}]
        if len(found) > 1:  # a host that joined anew keeps its old entry for a while
            online = {row.host_id for row in self._tunnels.agents()}
            found = [node for node in found if node.spec.host_id in online] or found
        if not found:
            raise DialError(f'node "{name}" is unknown: tsh ls lists those that you may reach', "unknown")
        if len(found) > 1:
            raise DialError(f"{len(found)} nodes are called {name}: ask for one by its id", "ambiguous")
        return found[0]

    async def _deny(self, connection: Connection, identity: Identity, node: Node, reason: str, rule: str) -> None:
        await self._audit.emit(
            "session.deny",
            connection=connection.id,
            user=str(identity),
            source=shown(connection.source),
            node=node.metadata.name,
            hostname=node.spec.hostname,
            what="node",
            reason=reason,
            rule=rule,
        )


async def attend(made: link.ServerLink, connection: Connection) -> None:
    """Keep a user's connection until it ends or falls silent."""
    made.set_keepalive(link.ALIVE, link.MISSED)
    connection.client = str(made.get_extra_info("client_version", ""))
    await made.wait_closed()


class UserLink(link.ServerLink):
    """A user's connection; the name that it asks for confers nothing, the certificate says who it is."""

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        self.attempt()
        owner = self.get_owner()
        if not isinstance(owner, Users) or not link.certifies(key_data):
            return False
        try:
            identity = owner.vouched(key_data)
        except IdentityError as error:
            self.refused(owner.traced(f"certificate refused: {error}"))
            return False
        owner.name = username
        principal = (*identity.principals, NO_LOGIN)[0]  # asyncssh compares the name with the principals
        return await super().validate_public_key(principal, key_data, msg, signature)

    def check_certificate_permission(self, permission: str) -> bool:
        return permission in {"port-forwarding", "pty"}  # the channel to a node is the service; a terminal, the hint's


class Users(asyncssh.SSHServer):
    """Answers for one user's connection: direct-tcpip to nodes is served, everything else is refused."""

    def __init__(
        self,
        service: SshProxy,
        connection: Connection,
        start: Callable[[Coroutine[Any, Any, None]], object],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._service, self._connection, self._start, self._log = service, connection, start, log
        self._identity: Identity | None = None
        self._certificate = ""
        self._channels = 0
        self.name = ""  # that the client asks for; tsh says the login on the node, others anything

    def traced(self, reason: str) -> str:
        """A refusal with this connection's id behind it."""
        return traced(reason, self._connection.id)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return self._identity is not None  # `vouched` has checked this very certificate against the user CA

    def vouched(self, certificate: bytes) -> Identity:
        """The user that a certificate names; asyncssh checks the signature made with its key. Raises IdentityError."""
        try:
            self._identity = self._service.identify(certificate)
        except IdentityError as error:
            self._identity = None
            self._log.info("certificate refused", reason=str(error))
            raise
        size = int.from_bytes(certificate[:4], "big")
        text = binascii.b2a_base64(certificate, newline=False).decode()
        self._certificate = f"{certificate[4 : 4 + size].decode('ascii')} {text}"
        return self._identity

    def auth_completed(self) -> None:
        assert self._identity is not None
        self._connection.identify(self._identity)  # from here on its end, or a lock, ends the connection

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return _Hint()

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Awaitable[ChannelSession]:
        return self._open(dest_host)

    async def _open(self, name: str) -> ChannelSession:
        assert self._identity is not None
        if self._channels >= CHANNELS:
            reason = f"more than {CHANNELS} connections at one time"
            _fail(asyncssh.OPEN_RESOURCE_SHORTAGE, self.traced(reason))
        self._channels += 1
        try:
            login = self.name[:MAX_NAME] if self._connection.client == TSH else None
            stream = await self._service.reach(self._connection, self._identity, self._certificate, name, login)
        except DialError as error:
            self._channels -= 1
            self._log.info("node not reached", node=name[:MAX_NAME], reason=str(error), code=error.code)
            code = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED if error.code == DENIED else asyncssh.OPEN_CONNECT_FAILED
            _fail(code, self.traced(str(error)))
        except BaseException:
            self._channels -= 1
            raise
        session = ChannelSession()
        self._start(self._joined(session, stream))
        return session

    async def _joined(self, session: ChannelSession, stream: Stream) -> None:
        try:
            await join(session, stream, self._connection.meter)
        finally:
            self._channels -= 1


class _Hint(asyncssh.SSHServerSession[bytes]):
    """What a plain `ssh proxy` gets: a line that says how to go on."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(self, term_type: str, term_size: Any, term_modes: Any) -> bool:
        return True  # nothing will run on it; refusing it would put a second message before ours

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        return True

    def session_started(self) -> None:
        if self._channel is not None:
            self._channel.write_stderr(HINT.encode())
            self._channel.exit(1)


async def _guarded(work: Coroutine[Any, Any, None], log: structlog.typing.FilteringBoundLogger) -> None:
    """Run one channel's relay; its fault is logged and stays its own."""
    try:
        await work
    except (OSError, asyncssh.Error, Failure) as error:
        log.info("channel ended", error=str(error) or type(error).__name__)
    except Exception:
        log.exception("channel failed")


def _fail(code: int, reason: str) -> NoReturn:
    raise asyncssh.ChannelOpenError(code, reason)
