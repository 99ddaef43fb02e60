"""The proxy's end of the reverse tunnels: which agents are there, and streams to them.

Belongs here: authenticating agents, their registry, dialling. Not here: who may reach a resource (a Permit says so).
An agent may ask for one thing only, to be dialled; every other request on its connection is refused by default.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol, assert_never

import asyncssh
import structlog

from monoport.access.decide import Permit
from monoport.access.identity import ClusterCas, Identity, IdentityError, Kind, from_ssh
from monoport.access.locks import lock_for
from monoport.access.resources import Database, Lock, Node
from monoport.net.stream import Stream
from monoport.tunnel import dial, link
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.dial import DialError, FrameError
from monoport.tunnel.preface import Accepted, Preface, Refused
from monoport.tunnel.preface import Kind as Wanted

LISTENER = "/monoport/dial"  # the one listener that an agent asks for; a name, not a path on any disk
CHANNELS = 1_024  # dialled streams of one tunnel: 256 MiB at worst if every one of them stalls
KEEPALIVE = 4.0  # seconds between probes, +-25 %; with MISSED below a dead peer is noticed within 15
MISSED = 2  # probes in a row without an answer
AGENTS = frozenset({"node", "db", "app", "kube"})

_log = structlog.get_logger()


class Inventory(Protocol):
    """What the tunnels must know of the cluster; `auth.cache.Cache` knows it."""

    @property
    def cas(self) -> ClusterCas: ...
    @property
    def locks(self) -> Iterable[Lock]: ...
    def nodes(self) -> Sequence[Node]: ...
    def databases(self) -> Sequence[Database]: ...


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One tunnel as listings show it; `since` is Unix time."""

    host_id: str
    roles: tuple[str, ...]
    source: str
    connection: str
    since: float
    channels: int


def keepalive(rand: Callable[[], float]) -> float:
    """Return one connection's interval between probes, in seconds: jittered so that agents do not probe in step."""
    return KEEPALIVE * (0.75 + rand() / 2)


class _AgentLink(link.ServerLink):
    """An agent's connection: it authenticates as a host, by its certificate of the host CA (RFC 4252 section 9)."""

    async def validate_host_based_auth(  # noqa: PLR0917  (asyncssh's own signature)
        self, username: str, key_data: bytes, client_host: str, client_username: str, msg: bytes, signature: bytes
    ) -> bool:
        self.attempt()
        owner = self.get_owner()
        if not isinstance(owner, _AgentServer) or not owner.vouched(key_data, client_host):
            return False
        return await super().validate_host_based_auth(username, key_data, client_host, client_username, msg, signature)


class _Dialled(asyncssh.SSHListener):
    """Stands for the listener that the agent asked for: nothing listens, the proxy opens channels by itself."""

    def close(self) -> None:
        super().close()

    async def wait_closed(self) -> None:
        await super().wait_closed()


class _AgentServer(asyncssh.SSHServer):
    """Answers for one agent's connection: its host certificate and one listener, everything else is refused."""

    def __init__(
        self, inventory: Inventory, now: Callable[[], datetime], log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._inventory, self._now, self._log = inventory, now, log
        self.identity: Identity | None = None
        self.ready = asyncio.Event()

    def vouched(self, certificate: bytes, name: str) -> bool:
        """Whether the host CA vouches for an agent of that name; the caller checks the signature."""
        self.identity = None
        try:
            identity = from_ssh(certificate, self._inventory.cas, self._now())
        except IdentityError as error:
            self._log.warning("agent refused", reason=str(error))
            return False
        if identity.kind is not Kind.HOST or not AGENTS.intersection(identity.roles) or identity.name != name:
            self._log.warning("agent refused", reason="not an agent's own certificate", host=str(identity), named=name)
            return False
        if lock_for(identity, self._inventory.locks, self._now()) is not None:
            self._log.warning("agent refused", reason="the host is locked", host=str(identity))
            return False
        self.identity = identity
        return True

    def host_based_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self.identity is not None  # `vouched` has checked this very certificate against the host CA

    def validate_host_based_user(self, username: str, client_host: str, client_username: str) -> bool:
        return self.identity is not None and username == client_host == self.identity.name

    def unix_server_requested(self, listen_path: str) -> asyncssh.SSHListener | bool:
        if listen_path != LISTENER or self.ready.is_set():
            self._log.warning("listener refused", path=listen_path[:256])
            return False
        self.ready.set()
        return _Dialled()


@dataclass(eq=False, slots=True)
class _Tunnel:
    identity: Identity
    link: _AgentLink
    source: str
    connection: str
    since: float = field(default_factory=time.time)
    channels: int = 0

    async def dial(self, preface: Preface) -> Stream:
        """Return a stream that the agent has accepted; raises DialError."""
        if self.channels >= CHANNELS:
            raise DialError(f"the agent already serves {CHANNELS} connections")
        session = ChannelSession()
        self.channels += 1
        session.when_gone(self._one_less)
        opening = self.link.create_task(self._open(session, preface.connection))
        try:
            async with asyncio.timeout(dial.PREFACE_SECONDS):
                await asyncio.shield(opening)
            if session.stream.lost:
                raise DialError("the agent did not take the connection")
            return await self._ask(session.stream, preface)
        except BaseException as error:
            # asyncssh cannot take an open request back: whatever becomes of it later, its channel goes
            opening.add_done_callback(lambda _task: session.stream.abort())
            if isinstance(error, TimeoutError):
                raise DialError(f"the agent did not answer within {dial.PREFACE_SECONDS:g} s") from error
            raise

    async def _open(self, session: ChannelSession, connection: str) -> None:
        try:
            await self.link.create_unix_connection(
                lambda: session, LISTENER, encoding=None, window=link.WINDOW, max_pktsize=link.PACKET
            )
        except (asyncssh.Error, OSError) as error:
            _log.info("dial refused by the agent", connection=connection, host=self.identity.name, error=str(error))
            session.never_opened()

    async def _ask(self, stream: Stream, preface: Preface) -> Stream:
        try:
            answer = await dial.ask(stream, preface)
        except (FrameError, ConnectionError) as error:
            raise DialError("the agent did not answer properly") from error
        match answer:
            case Accepted():
                return stream
            case Refused(code, reason):
                raise DialError(reason or "the agent refused", code)
            case _:
                assert_never(answer)

    def _one_less(self) -> None:
        self.channels -= 1


class Tunnels:
    """Every agent that holds a tunnel to this proxy.

    Args:
        host: this proxy's key and host certificate, asked for on every connection since certificates are renewed.
        inventory: the cluster's CAs and what its agents have registered.
        rand, now: jitter and UTC time, so that tests need neither luck nor patience.
    """

    def __init__(
        self,
        host: Callable[[], link.HostKey],
        inventory: Inventory,
        *,
        rand: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._host, self._inventory, self._rand, self._now = host, inventory, rand, now
        self._tunnels: dict[str, list[_Tunnel]] = {}

    async def serve(
        self,
        stream: Stream,
        *,
        source: tuple[str, int],
        connection: str,
        identified: Callable[[Identity], object] | None = None,
    ) -> None:
        """Serve one agent's tunnel until it ends.

        Args: the stream, its peer's address, the connection's id, and what to tell once the agent has proven who it is
        (which may raise to turn it away, and ends the stream when the agent's certificate ends or it is locked).
        Returns when the tunnel is gone, also where the agent does not authenticate: the log says why.
        """
        log = _log.bind(connection=connection, source=f"{source[0]}:{source[1]}")
        owner = _AgentServer(self._inventory, self._now, log)
        options = link.server_options(self._host(), link.AGENT_LOGIN)
        options.trust_client_host = True  # the name in the certificate counts, not what DNS says of an address
        try:
            async with link.serving(stream, options, _AgentLink, owner, source) as made:
                if owner.identity is None:
                    return
                if identified is not None:
                    identified(owner.identity)
                made.set_keepalive(keepalive(self._rand), MISSED)
                async with asyncio.timeout(link.AGENT_LOGIN):
                    await owner.ready.wait()
                tunnel = _Tunnel(owner.identity, made, f"{source[0]}:{source[1]}", connection)
                await self._until_gone(tunnel, log.bind(host=owner.identity.name))
        except (asyncssh.Error, OSError, TimeoutError) as error:
            log.info("tunnel not established", error=str(error) or type(error).__name__)

    async def _until_gone(self, tunnel: _Tunnel, log: structlog.typing.FilteringBoundLogger) -> None:
        same = self._tunnels.setdefault(tunnel.identity.name, [])
        same.append(tunnel)
        log.info("tunnel open")
        try:
            await tunnel.link.wait_closed()
        finally:
            same.remove(tunnel)
            if not same:
                self._tunnels.pop(tunnel.identity.name, None)
            log.info("tunnel closed")

    async def dial(self, permit: Permit, preface: Preface, *alternatives: Permit) -> Stream:
        """Return a stream to the permitted resource, past the agent's acceptance.

        Args: what `access` permitted, what the agent is told (its `host_id` is filled in here), and permits for the
        same resource at other agents, tried in order where one is down.
        Raises DialError: unknown, offline, or the agent's own refusal.
        """
        error = DialError(f"{_noun(permit)} {preface.target} is offline")
        for one in (permit, *alternatives):
            shown = self._registered(one, preface)
            error = DialError(f"{_noun(one)} {shown} is offline")
            # the newest tunnel first: an agent that came back may be quicker than the end of its old connection
            for tunnel in reversed(self._tunnels.get(one.host_id, ())[:]):
                try:
                    return await tunnel.dial(replace(preface, host_id=one.host_id))
                except DialError as failed:
                    if failed.code == dial.DENIED:
                        raise
                    error = DialError(f"{_noun(one)} {shown}: {failed}", failed.code)
        raise error

    def _registered(self, permit: Permit, preface: Preface) -> str:
        """Return the resource's name for people; raises DialError unless that host has registered it."""
        resources: Sequence[Node | Database]
        resources = self._inventory.nodes() if permit.kind == "node" else self._inventory.databases()
        fits = (preface.kind is Wanted.SSH) == (permit.kind == "node") and preface.target == permit.name
        for resource in resources:
            if fits and resource.metadata.name == permit.name and resource.spec.host_id == permit.host_id:
                return resource.spec.hostname if isinstance(resource, Node) else permit.name
        raise DialError(f"{_noun(permit)} {preface.target} is unknown", "unknown")

    def agents(self) -> list[AgentRow]:
        """Return every open tunnel."""
        return [
            AgentRow(one.identity.name, one.identity.roles, one.source, one.connection, one.since, one.channels)
            for same in self._tunnels.values()
            for one in same
        ]


def _noun(permit: Permit) -> str:
    return "node" if permit.kind == "node" else "database"
