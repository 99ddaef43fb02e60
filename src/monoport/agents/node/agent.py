"""The node agent: takes the streams that the proxy dials and serves SSH on them, end to end.

Belongs here: the preface, the second decision, the lease. Not here: the tunnel (`monoport.tunnel`), SSH (`server`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import asyncssh
import structlog

from monoport.access.decide import UNACCEPTED, Denied, Permit, Ssh, authorize
from monoport.access.identity import ClusterCas, Identity, IdentityError, Kind, from_ssh
from monoport.access.lease import Leases
from monoport.access.resources import Lock, Role
from monoport.access.resources import Node as Listed
from monoport.agents.node.server import Gate, NodeLink, NodeServer
from monoport.audit.log import Log
from monoport.audit.recorder import Recordings
from monoport.errors import Failure
from monoport.net.stream import Stream
from monoport.tunnel import dial, link
from monoport.tunnel.dial import DialRefused
from monoport.tunnel.preface import Kind as Wanted
from monoport.tunnel.preface import Preface

LATE = 2  # ticks after a connection is gone: the proxy, which cuts it for a lock too, may have heard of it before us
TICK = 1.0  # seconds between looks at the lease; a session must be over 5 s after its certificate or a lock says so

_log = structlog.get_logger()


class Knowledge(Protocol):
    """What the node must know of the cluster; `auth.cache.Cache` knows it."""

    @property
    def cas(self) -> ClusterCas: ...
    @property
    def roles(self) -> Mapping[str, Role]: ...
    @property
    def locks(self) -> Iterable[Lock]: ...


class Node:
    """Serves one node's SSH sessions.

    Args:
        node: this node as the cluster knows it, asked for on every connection since its labels may change.
        host: its key and host certificate, asked for likewise since certificates are renewed.
        cache: roles, locks and CAs.
        audit: where events go; nothing goes on before its event is kept.
        recordings: where terminals are recorded; None where they cannot be, and sessions that must be are refused.
        now, tick: UTC time, and seconds between looks at leases.
    """

    def __init__(
        self,
        node: Callable[[], Listed],
        host: Callable[[], link.HostKey],
        cache: Knowledge,
        audit: Log,
        *,
        recordings: Recordings | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        tick: float = TICK,
    ) -> None:
        self._recordings = recordings
        self._node, self._host, self._cache, self._audit, self._now, self._tick = node, host, cache, audit, now, tick
        self._servers: set[NodeServer] = set()  # of everybody who is logged in
        self.logins = 0  # since the start of this process

    @property
    def connections(self) -> int:
        """How many logins there are now."""
        return len(self._servers)

    @property
    def sessions(self) -> int:
        """How many shells, commands and file transfers run now."""
        return sum(server.sessions for server in self._servers)

    async def serve(self, preface: Preface, stream: Stream) -> None:
        """Serve one dialled stream to its end.

        Raises DialRefused before anything is accepted: another resource, a certificate that does not hold, no permit.
        """
        node = self._node()
        if preface.kind is not Wanted.SSH or preface.target != node.metadata.name:
            raise DialRefused(dial.NOT_SERVED, "this node does not serve that")
        identity = await self._announced(preface, node)
        facts = {
            "connection": preface.connection,
            "user": str(identity),
            "source": preface.source,
            "node": node.metadata.name,
            "hostname": node.spec.hostname,
        }
        await dial.accept(stream)
        log = _log.bind(connection=preface.connection, user=str(identity), source=preface.source)
        async with asyncio.TaskGroup() as group:

            def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return group.create_task(_guarded(work, log))

            gate = Gate(self._identify, lambda who, login: self._authorize(node, who, login), identity)
            source = _address(preface.source)
            recordings = self._recordings
            server = NodeServer(gate, self._audit, facts, source=source, start=start, log=log, recordings=recordings)
            await self._secure(node, server, stream, log)
            await server.wait_closed()

    async def _announced(self, preface: Preface, node: Listed) -> Identity:
        """Return whom the proxy announces, after deciding by ourselves whether any login may reach this node."""
        facts = {"connection": preface.connection, "source": preface.source, "node": node.metadata.name}
        try:
            identity = self._identify(preface.certificate)
            if identity.kind is not Kind.USER:
                raise IdentityError("a host cannot log in")
        except IdentityError as error:
            await self._audit.emit("session.deny", **facts, user="", what="node", reason=str(error), rule=UNACCEPTED)
            raise DialRefused(dial.DENIED, f"certificate refused: {error}") from error
        decided = self._authorize(node, identity, None)
        if isinstance(decided, Denied):
            why = {"what": "node", "reason": decided.reason, "rule": decided.rule}
            await self._audit.emit("session.deny", **facts, user=str(identity), **why)
            raise DialRefused(dial.DENIED, decided.reason)
        return identity

    def _identify(self, certificate: bytes | str) -> Identity:
        return from_ssh(certificate, self._cache.cas, self._now())

    def _authorize(self, node: Listed, identity: Identity, login: str | None) -> Permit | Denied:
        cache = self._cache
        return authorize(identity, node, Ssh(login), cache.roles, cache.locks, self._now())

    async def _secure(
        self,
        node: Listed,
        server: NodeServer,
        stream: Stream,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        options = link.server_options(self._host(), link.USER_LOGIN)
        options.agent_forwarding = True  # `NodeLink` decides
        try:
            async with link.serving(stream, options, NodeLink, server, server.source) as made:
                made.set_keepalive(link.ALIVE, link.MISSED)
                log.info("logged in", client=str(made.get_extra_info("client_version", "")))
                self.logins += 1
                self._servers.add(server)
                await self._while_permitted(node, made, server)
        except (asyncssh.Error, OSError) as error:
            log.info("not logged in", error=str(error) or type(error).__name__)
        finally:
            self._servers.discard(server)

    async def _while_permitted(self, node: Listed, made: NodeLink, server: NodeServer) -> None:
        """Wait for the connection's end, and end it when its permit does."""
        admission = server.admission
        assert admission is not None

        def end(reason: str) -> None:
            if server.host is not None:
                server.host.ending = reason
            if not made.is_closed():
                made.disconnect(asyncssh.DISC_BY_APPLICATION, f"session ended: {reason}")

        leases = Leases()
        names = (node.metadata.name, node.spec.hostname)
        permit = admission.permit
        leases.add(admission.identity, permit.until, end, nodes=names, login=admission.account.login)
        try:
            while not made.is_closed():
                leases.sweep(self._now(), self._cache.locks)
                try:
                    async with asyncio.timeout(self._tick):
                        await made.wait_closed()
                except TimeoutError:
                    continue
            for _ in range(LATE):
                if leases.sweep(self._now(), self._cache.locks) or not leases:
                    break
                await asyncio.sleep(self._tick)
        finally:
            if server.host is not None:
                server.host.decided.set()


async def _guarded(work: Coroutine[Any, Any, None], log: structlog.typing.FilteringBoundLogger) -> None:
    """Run one session's part; its fault is logged and stays its own."""
    try:
        await work
    except (OSError, asyncssh.Error, Failure) as error:
        log.info("part of a session ended", error=str(error) or type(error).__name__)
    except Exception:
        log.exception("part of a session failed")


def _address(source: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[host]:port"; the unknown address where it is neither."""
    host, _, port = source.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else ("0.0.0.0", 0)  # noqa: S104
