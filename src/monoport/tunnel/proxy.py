"""The proxy's end of the reverse tunnels: which agents are there, and streams to them.

Belongs here: authenticating agents, their registry, dialling. Not here: who may reach a resource (a Permit says so).
An agent may ask for one thing only, to be dialled; every other request on its connection is refused by default.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import assert_never

import asyncssh
import structlog

from monoport.access.decide import Permit
from monoport.access.identity import Identity, Kind
from monoport.access.resources import Database, Node
from monoport.errors import Failure
from monoport.net.stream import Stream
from monoport.tunnel import dial, link
from monoport.tunnel.admission import AGENTS, LISTENER, AgentLink, AgentServer, Inventory
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.dial import DialError, FrameError
from monoport.tunnel.dialback import Orders, Tokens, Unexpected
from monoport.tunnel.preface import Accepted, Preface, Refused
from monoport.tunnel.preface import Kind as Wanted

CHANNELS = 1_024  # dialled streams of one tunnel: 256 MiB at worst if every one of them stalls
KEEPALIVE = 4.0  # seconds between probes, +-25 %; with MISSED below a dead peer is noticed within 15
FIRST_PAUSE, LAST_PAUSE = 0.05, 30.0  # seconds before the channel of orders is opened again
MISSED = 2  # probes in a row without an answer
BULKY = frozenset({"node", "db", "app", "kube"})  # agents that are asked to dial back
BULK = frozenset({Wanted.SSH, Wanted.DATABASE})  # one SSH connection is one core's work

_log = structlog.get_logger()


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


class _UnansweredError(DialError):
    """The connection broke before the agent's answer: it has begun nothing that it could tell of."""


@dataclass(eq=False, slots=True)
class _Tunnel:
    identity: Identity
    link: AgentLink
    source: str
    connection: str
    orders: Orders
    since: float = field(default_factory=time.time)
    channels: int = 0

    async def dial(self, preface: Preface) -> Stream:
        """Return a stream that the agent has accepted, dialled back where it may carry much; raises DialError."""
        if preface.kind in BULK and (stream := await self.orders.connection(preface.connection)) is not None:
            try:
                return await self._ask(stream, preface)
            except _UnansweredError as error:
                _log.info("dial-back broke", connection=preface.connection, host=self.identity.name, error=str(error))
        return await self.channel(preface)

    async def channel(self, preface: Preface) -> Stream:
        """Return a channel of the tunnel that the agent has accepted; raises DialError."""
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
                lambda: session, LISTENER, encoding=None, window=link.WINDOW, max_pktsize=link.TUNNEL_PACKET
            )
        except (asyncssh.Error, OSError) as error:
            _log.info("dial refused by the agent", connection=connection, host=self.identity.name, error=str(error))
            session.never_opened()

    async def _ask(self, stream: Stream, preface: Preface) -> Stream:
        try:
            answer = await dial.ask(stream, preface)
        except TimeoutError as error:
            stream.abort()
            raise DialError(f"the agent did not answer within {dial.PREFACE_SECONDS:g} s") from error
        except (FrameError, ConnectionError) as error:
            stream.abort()
            raise _UnansweredError("the agent did not answer properly") from error
        except BaseException:
            stream.abort()
            raise
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
        rand, now, clock, sleep: jitter, UTC time, seconds and pausing, so that tests need neither luck nor patience.
    """

    def __init__(
        self,
        host: Callable[[], link.HostKey],
        inventory: Inventory,
        *,
        rand: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._host, self._inventory, self._rand, self._now, self._clock = host, inventory, rand, now, clock
        self._tunnels: dict[str, list[_Tunnel]] = {}
        self._sleep, self._tokens = sleep, Tokens(clock)

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
        owner = self.answering(connection, source)
        options = link.server_options(self._host(), link.AGENT_LOGIN)
        options.trust_client_host = True  # the name in the certificate counts, not what DNS says of an address
        try:
            async with link.serving(stream, options, AgentLink, owner, source) as made:
                await self.hold(made, owner, source=source, connection=connection, identified=identified)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            log.info("tunnel not established", error=str(error) or type(error).__name__)

    def answering(self, connection: str, source: tuple[str, int]) -> AgentServer:
        """What answers for one agent's connection while it signs in, and refuses what it may not ask for then."""
        log = _log.bind(connection=connection, source=f"{source[0]}:{source[1]}")
        return AgentServer(self._inventory, self._now, log)

    async def hold(
        self,
        made: AgentLink,
        owner: AgentServer,
        *,
        source: tuple[str, int],
        connection: str,
        identified: Callable[[Identity], object] | None = None,
    ) -> None:
        """Dial through an agent's connection, which `owner` has let in, until it ends; arguments as for `serve`.

        Raises TimeoutError where the agent does not ask to be dialled, and what `identified` raises.
        """
        if owner.identity is None:
            return
        if identified is not None:
            identified(owner.identity)
        made.set_keepalive(keepalive(self._rand), MISSED)
        async with asyncio.timeout(link.AGENT_LOGIN):
            await owner.ready.wait()
        orders = Orders(owner.identity.name, self._tokens, self._clock)
        tunnel = _Tunnel(owner.identity, made, f"{source[0]}:{source[1]}", connection, orders)
        await self._until_gone(tunnel)

    async def _until_gone(self, tunnel: _Tunnel) -> None:
        log = _log.bind(connection=tunnel.connection, source=tunnel.source, host=tunnel.identity.name)
        same = self._tunnels.setdefault(tunnel.identity.name, [])
        same.append(tunnel)
        log.info("tunnel open")
        try:
            async with asyncio.TaskGroup() as group:
                ordering = group.create_task(self._order(tunnel))
                await tunnel.link.wait_closed()
                ordering.cancel()
        finally:
            same.remove(tunnel)
            if not same:
                self._tunnels.pop(tunnel.identity.name, None)
            log.info("tunnel closed")

    async def _order(self, tunnel: _Tunnel) -> None:
        """Keep the channel open over which dial-backs are ordered; without it, channels serve everything."""
        host = tunnel.identity.name
        if BULKY.isdisjoint(tunnel.identity.roles):
            return
        preface = Preface(tunnel.connection, Wanted.ORDERS, Wanted.ORDERS, host_id=host)
        for failures in itertools.count():
            try:
                async with await tunnel.channel(preface) as control:
                    await tunnel.orders.serve(control)
            except (Failure, FrameError, OSError) as error:
                _log.info("no dial-backs", connection=tunnel.connection, host=host, reason=str(error))
                if isinstance(error, DialError) and error.code == dial.NOT_SERVED:
                    return  # an agent that was told not to dial back
            # An agent that asked for its listener a moment ago may not know yet that it has it.
            await self._sleep(min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures, 16)))

    def dialled_back(self, token: str, identity: Identity, stream: Stream) -> None:
        """Take a connection that an agent has dialled back; raises Unexpected where this proxy does not await it."""
        if identity.kind is not Kind.HOST or AGENTS.isdisjoint(identity.roles):
            raise Unexpected(f"{identity} is no agent")
        self._tokens.redeem(token, identity.name).arrived(stream)

    async def dial(self, permit: Permit, preface: Preface) -> Stream:
        """Return a stream to the permitted resource, past its agent's acceptance.

        Args: what `access` permitted, and what the agent is told (its `host_id` is filled in here).
        Raises DialError: unknown, offline, or the agent's own refusal. Whoever may reach the resource by another agent
        asks again, with the permit for that one.
        """
        shown = self._registered(permit, preface)
        error = DialError(f'{_noun(permit)} "{shown}" is offline')
        # the newest tunnel first: an agent that came back may be quicker than the end of its old connection
        for tunnel in reversed(self._tunnels.get(permit.host_id, ())[:]):
            try:
                return await tunnel.dial(replace(preface, host_id=permit.host_id))
            except DialError as failed:
                if failed.code == dial.DENIED:
                    raise
                named = f'"{shown}"' in str(failed)
                error = DialError(str(failed) if named else f'{_noun(permit)} "{shown}": {failed}', failed.code)
        raise error

    def _registered(self, permit: Permit, preface: Preface) -> str:
        """Return the resource's name for people; raises DialError unless that host has registered it."""
        resources: Sequence[Node | Database]
        resources = self._inventory.nodes() if permit.kind == "node" else self._inventory.databases()
        fits = (preface.kind is Wanted.SSH) == (permit.kind == "node") and preface.target == permit.name
        for resource in resources:
            if fits and resource.metadata.name == permit.name and resource.spec.host_id == permit.host_id:
                return resource.spec.hostname if isinstance(resource, Node) else permit.name
        raise DialError(f'{_noun(permit)} "{preface.target}" is unknown', "unknown")

    def agents(self) -> list[AgentRow]:
        """Return every open tunnel."""
        return [
            AgentRow(one.identity.name, one.identity.roles, one.source, one.connection, one.since, one.channels)
            for same in self._tunnels.values()
            for one in same
        ]


def _noun(permit: Permit) -> str:
    return "node" if permit.kind == "node" else "database"
