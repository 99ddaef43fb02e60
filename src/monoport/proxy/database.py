"""The handler of database connections, the same for every protocol: opening, identity, permit, dial, relay.

Belongs here: what the proxy decides and in which order. How a protocol opens and refuses lives in its Front
(`wire/<protocol>`), taking its steps in `opening`; finding the agent in `tunnel`; what the user runs in the agent.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, assert_never

import structlog

from monoport import protocols
from monoport.access.claims import IdentityError
from monoport.access.decide import DatabaseLogin, Denied, Permit, authorize
from monoport.access.resources import Database, Lock, Role
from monoport.audit import startup
from monoport.audit.log import Log
from monoport.audit.outage import NotRecorded
from monoport.errors import Failure
from monoport.net.relay import relay
from monoport.net.stream import Stream
from monoport.net.tls import HandshakeError, TlsStream
from monoport.protocols.description import Description
from monoport.proxy.cancels import Cancels, Live
from monoport.proxy.connection import Connection
from monoport.proxy.contexts import Contexts
from monoport.proxy.destination import Refused, asked, narrowed_to, wanted
from monoport.proxy.opening import opened, tell
from monoport.proxy.source import shown
from monoport.routing.outcome import Refusal
from monoport.tunnel.dial import DENIED, DialError, FrameError
from monoport.tunnel.preface import Kind, Preface
from monoport.tunnel.sealing import step_aside
from monoport.wire.front import Cancel, Closed, Front, Known, Login, Why

OPENING = 10.0  # seconds from the handler's start to the login, in-protocol TLS included
CANCEL = 10.0  # seconds that a cancel may take through the tunnel and to the real server
SEALING = 10.0  # seconds for the proxy to step aside: a round trip to a client of ours, one to the agent

_log = structlog.get_logger()


class Directory(Protocol):
    """What the handler needs to know of the cluster; `auth.cache.Cache` is one."""

    @property
    def roles(self) -> Mapping[str, Role]: ...

    @property
    def locks(self) -> Iterable[Lock]: ...

    def databases(self) -> Iterable[Database]: ...


class Dialer(Protocol):
    """Who opens a stream to the agent of a permit's resource; `tunnel.proxy.Tunnels` is one."""

    async def dial(self, permit: Permit, preface: Preface) -> Stream: ...


class Databases:
    """Serves connections that routing sent to a database, on one proxy.

    Args:
        contexts: TLS contexts for in-protocol TLS.
        tunnels: opens streams to agents.
        directory: roles, locks and databases of the cluster.
        audit: where sessions and refusals are recorded.
        table: the protocols served.
        cancels: the keys by which running sessions are cancelled.
        now: the time in UTC.
    """

    def __init__(
        self,
        contexts: Contexts,
        tunnels: Dialer,
        directory: Directory,
        audit: Log,
        *,
        table: Mapping[str, Description] = protocols.TABLE,
        cancels: Cancels | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._contexts = contexts
        self._tunnels = tunnels
        self._directory = directory
        self._audit = audit
        self._table = table
        self._cancels = cancels or Cancels()
        self._now = now

    async def serve(self, connection: Connection) -> None:
        """Serve one connection to its end."""
        protocol = self._protocol(connection)
        if protocol is None:
            _refused(connection, "no_protocol", "neither route nor certificate names a database protocol")
            return
        with self._cancels.open(connection.id) as live:
            await self._serve(connection, protocol, live)

    async def _serve(self, connection: Connection, protocol: Description, live: Live) -> None:
        front = protocol.front()
        try:
            async with asyncio.timeout(OPENING):
                known = Known(live.key.process_id, self._version(connection, protocol))
                said = await opened(connection, front, known, self._contexts)
        except TimeoutError:
            _refused(connection, "late_login", f"no login within {OPENING:g} s")
            return
        except IdentityError as error:
            _refused(connection, "identity_refused", str(error))
            await tell(connection, front, Why.DENIED, f"certificate not accepted: {error}")
            return
        except HandshakeError as error:
            _refused(connection, "handshake_failed", str(error))
            return
        match said:
            case Closed(reason, why):
                _refused(connection, "no_login", reason)
                if why is not None:
                    await tell(connection, front, why, reason)
            case Cancel():
                await self._cancel(connection, said)
            case Login():
                self._cancels.arm(live, said.secret_bytes)
                await self._login(connection, front, protocol, said, live)
            case _:
                assert_never(said)

    def _version(self, connection: Connection, protocol: Description) -> str:
        """What the real server calls itself, if that is known before the client has spoken.

        Where nothing names the database yet, all of the protocol's servers of which that is known must say the same.
        """
        destination = narrowed_to(connection.identity)
        route = connection.route
        name = destination.name if destination is not None else route.target if route is not None else None
        one_of = self._named(name) if name else self._directory.databases()
        said = {one.spec.server_version for one in one_of if one.spec.protocol == protocol.name} - {""}
        return said.pop() if len(said) == 1 else ""

    def _protocol(self, connection: Connection) -> Description | None:
        """The protocol that the route names, else that of the database which SNI or certificate names.

        Where these two name different ones the client is refused, in the words of the one that it believes to be at.
        """
        route = connection.route
        if route is not None and route.protocol is not None:
            return self._table.get(route.protocol)
        target = route.target if route is not None else None
        known = next((one.spec.protocol for one in self._named(target)), "") if target else ""
        destination = narrowed_to(connection.identity)
        if destination is None or (known and target != destination.name):
            return self._table.get(known)
        return self._table.get(destination.protocol or known)

    async def _login(
        self, connection: Connection, front: Front, protocol: Description, login: Login, live: Live
    ) -> None:
        identity = connection.identity
        assert identity is not None, "fronts let nobody log in without a certificate"
        who: dict[str, Any] = {"connection": connection.id, "user": str(identity), "source": shown(connection.source)}
        target = connection.route.target if connection.route is not None else None
        who |= asked(identity, target, login) | {"protocol": protocol.name}
        try:
            name, action = wanted(identity, target, protocol, login)
            who |= {"database": name, "db_user": action.user, "db_name": action.database or ""}
            if action.features:
                who["features"] = list(action.features)
            permit, server = await self._dial(connection, protocol, name, action, live)
            async with server:
                live.permit = permit
                await self._session(connection, server, login, who | {"rule": permit.rule})
        except Refused as refused:
            _refused(connection, f"database_{refused.why}", str(refused), refused.rule)
            try:
                await self._audit.emit("db.session.deny", **who, reason=str(refused), rule=refused.rule)
            except Failure as error:
                _log.error("refusal not recorded", connection=connection.id, reason=str(error))
            await tell(connection, front, refused.why, str(refused))

    async def _session(self, connection: Connection, server: Stream, login: Login, who: Mapping[str, Any]) -> None:
        """Record and relay one session to its end."""
        started = self._now()
        # Before a byte goes on: a session that cannot be recorded does not take place.
        try:
            await self._audit.emit("db.session.start", **who, startup=startup.shown(login.parameters))
        except Failure as error:
            what = f"the session could not be recorded: {NotRecorded()}"
            raise Refused(Why.INTERNAL, what, f"audit log: {error}") from error
        # The agent holds a lease of its own and tells the client why the session ends; what is left then is cut.
        connection.on_end = _agent_ends
        try:
            client = connection.stream
            if _sealed(connection):
                client, server = await _aside(client, server, login.forward)
            else:
                await server.write(login.forward)
            await relay(client, server, meter=connection.meter)
        except (Failure, OSError) as error:
            connection.meter.ended = connection.meter.ended or str(error) or type(error).__name__
            raise
        finally:
            connection.on_end = None
            # The agent may have noticed first, and its end of the session is all that we have seen of it.
            connection.ended = connection.ended or connection.due(self._now(), self._directory.locks)
            await self._audit.emit(
                "db.session.end",
                **who,
                reason=connection.ended or connection.meter.ended,
                seconds=round((self._now() - started).total_seconds(), 3),
                bytes_in=connection.meter.bytes_in,
                bytes_out=connection.meter.bytes_out,
            )

    async def _dial(
        self, connection: Connection, protocol: Description, name: str, action: DatabaseLogin, live: Live
    ) -> tuple[Permit, Stream]:
        """Open a stream to an agent of the database: the first that answers of those the user may reach."""
        identity = connection.identity
        assert identity is not None
        refused = Refused(Why.UNKNOWN, f'database "{name}" is not known here')
        for resource in self._named(name):
            if resource.spec.protocol != protocol.name:
                refused = Refused(Why.UNKNOWN, f'database "{name}" does not speak {protocol.title}')
                continue
            decision = authorize(identity, resource, action, self._directory.roles, self._directory.locks, self._now())
            if isinstance(decision, Denied):
                refused = Refused(Why.DENIED, decision.reason, decision.rule)
                continue
            preface = Preface(
                connection=connection.id,
                kind=Kind.DATABASE,
                target=name,
                certificate=ssl.DER_cert_to_PEM_cert(connection.certificate or b""),
                source=shown(connection.source),
                user=action.user,
                database=action.database or "",
                process_id=live.key.process_id,
                secret=live.key.secret,
                features=action.features,
                sealed=_sealed(connection),
            )
            try:
                return decision, await self._tunnels.dial(decision, preface)
            except DialError as error:
                if error.code == DENIED:
                    raise Refused(Why.DENIED, str(error), "the agent's own decision") from error
                refused = Refused(Why.OFFLINE, str(error), error.code)
        raise refused

    async def _cancel(self, connection: Connection, request: Cancel) -> None:
        """Pass a cancel on to the agent that runs the session; whatever happens, the client sees a close."""
        log = _log.bind(connection=connection.id, source=shown(connection.source))
        host = connection.source[0]
        live = self._cancels.find(request.process_id, request.secret, host)
        if live is None or live.permit is None:
            log.info("cancel ignored", reason="no session has this key")
            if guesses := self._cancels.to_record():
                await self._record_cancel(
                    connection, "db.cancel.deny", reason="no session has this key", guesses=guesses
                )
            return
        if not await self._record_cancel(
            connection, "db.cancel", user=str(live.permit.identity), database=live.permit.name, session=live.connection
        ):
            return
        preface = Preface(
            connection=live.connection,
            kind=Kind.CANCEL,
            target=live.permit.name,
            source=shown(connection.source),
            process_id=live.key.process_id,
            secret=live.key.secret,
        )
        try:
            async with asyncio.timeout(CANCEL), await self._tunnels.dial(live.permit, preface) as agent:
                await agent.read()  # the agent closes when the real server has taken the cancel
        except (DialError, ConnectionError, TimeoutError) as error:
            log.info("cancel failed", session=live.connection, reason=str(error))
            return
        log.info("cancel passed on", session=live.connection)

    async def _record_cancel(self, connection: Connection, kind: str, **fields: Any) -> bool:
        """Record what a cancel request came to; whether the audit log took it."""
        try:
            await self._audit.emit(kind, connection=connection.id, source=shown(connection.source), **fields)
        except Failure as error:
            _log.error("cancel not recorded", connection=connection.id, reason=str(error))
            return False
        return True

    def _named(self, name: str) -> list[Database]:
        """The agents' entries of that name; those whose server did not answer last."""
        found = [one for one in self._directory.databases() if one.name == name]
        return sorted(found, key=lambda one: one.spec.state == "down")


def _refused(connection: Connection, code: str, reason: str, rule: str = "") -> None:
    """Keep a refusal where `tctl conns ls` and the log show it."""
    connection.ended = reason
    refusal = Refusal(code, reason, rule=rule)
    connections = connection.front.connections
    connections.refused(connection.id, connection.source, refusal, connection.route, connection.identity)


def _sealed(connection: Connection) -> bool:
    """Whether the session is to be between the client and the agent alone."""
    return connection.route is not None and connection.route.sealed


async def _aside(client: Stream, server: Stream, opening: bytes) -> tuple[Stream, Stream]:
    """Leave client and agent to each other. Raises Failure, ConnectionError."""
    assert isinstance(client, TlsStream)  # the route's own TLS
    try:
        async with asyncio.timeout(SEALING):
            return await step_aside(client, server, opening)
    except TimeoutError:
        raise Failure(f"the session was not sealed within {SEALING:g} s") from None
    except FrameError as error:
        raise Failure(f"the session was not sealed: {error}") from error


def _agent_ends(reason: str) -> None:
    """Nothing to do here: see `Connection.end`."""
