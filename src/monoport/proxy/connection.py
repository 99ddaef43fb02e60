"""One connection's life at the front door, in four steps.

Belongs here: `Connection`, and `serve`, which routes, speaks TLS, finds the identity and calls the handler. Does not
belong here: what a handler does, who may do it (`access.authorize`, called by handlers), accepting (`net.listener`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from cryptography import x509

from monoport.access.claims import IdentityError
from monoport.access.identity import from_x509
from monoport.errors import Failure
from monoport.net.arrival import Arrival, LateError, Source
from monoport.net.meter import Meter
from monoport.net.stream import Stream, linger
from monoport.net.tls import HandshakeError, serve_tls
from monoport.routing.match import match as decide
from monoport.routing.match import missing, silence
from monoport.routing.outcome import Answer, Ask, Kind, Refusal, Route, Tls

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from monoport.access.claims import Identity
    from monoport.access.identity import ClusterCas
    from monoport.access.lease import Lease
    from monoport.access.resources import Lock
    from monoport.proxy.contexts import Contexts
    from monoport.proxy.registry import Connections
    from monoport.routing.table import Table

PARTING = 3.0  # seconds for a handler's own way to end: a sweep each second, and 5 s in all


class Refused(Failure):
    """The connection ends here, for the reason that `refusal` names."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class SessionEnded(Failure, ConnectionError):
    """A running session was ended: its certificate expired, its user was locked, an administrator said so."""


@dataclass(slots=True, eq=False)
class Connection:
    """What is known of one connection; handlers read it, and `tctl conns ls` shows it.

    source: address and port. started: seconds since 1970. stream: what the handler speaks over. certificate: the
    verified one, DER. state: the step it is in. client: the software that it says it is, where its protocol does (SSH).
    ended: why, if not by its own ends.
    """

    id: str
    source: Source
    stream: Stream
    front: FrontDoor
    started: float = field(default_factory=time.time)
    route: Route | None = None
    identity: Identity | None = None
    certificate: bytes | None = None
    meter: Meter = field(default_factory=Meter)
    state: str = "routing"
    client: str = ""
    ended: str = ""
    on_end: Callable[[str], None] | None = None
    _lease: Lease | None = None

    def identify(self, proof: bytes | Identity) -> Identity:
        """Take the identity of a certificate (DER, its key proven by TLS) or one found otherwise; it is leased.

        From now on the connection ends when the identity expires or is locked. Raises IdentityError.
        """
        if isinstance(proof, bytes):
            identity = from_x509(x509.load_der_x509_certificate(proof), self.front.cas())
            self.certificate = proof
        else:
            identity = proof
        self.release()
        self.identity = identity
        self._lease = self.front.connections.leases.add(identity, identity.expires, self.end)
        return identity

    def end(self, reason: str) -> None:
        """End the connection, whatever it does; `reason` is logged and shown.

        At once, unless the handler has set `on_end`: it then has PARTING seconds to say so in its own protocol.
        """
        self.ended = reason
        if self.on_end is not None:
            self.on_end(reason)
            self.stream.loop.call_later(PARTING, self.stream.abort, SessionEnded(reason))
        else:
            self.stream.abort(SessionEnded(reason))

    def due(self, now: datetime, locks: Iterable[Lock]) -> str:
        """Why the connection must have ended by now (UTC), whether or not it was noticed here; "" if it may go on."""
        return self._lease.due(now, locks) if self._lease is not None else ""

    def release(self) -> None:
        """Give the lease back; the front door calls it when the connection is over."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None


Handler = Callable[[Connection], Awaitable[None]]


@dataclass(slots=True)
class FrontDoor:
    """What every connection is served with; `table` and `handlers` may be replaced at any time.

    cas: the CAs of the cluster, as they are now.
    """

    table: Table
    contexts: Contexts
    connections: Connections
    handlers: Mapping[Kind, Handler]
    cas: Callable[[], ClusterCas]


async def serve(arrival: Arrival, front: FrontDoor, said: str = "") -> None:
    """Serve one connection from its first bytes to its end; the listener's `serve`.

    said: the protocol whose own port it came to, where that protocol's clients begin with TLS.
    """
    connection = Connection(arrival.id, arrival.source, arrival.stream, front)
    front.connections.opened(connection)
    try:
        route = connection.route = await _route(arrival, front.table, said)
        arrival.routed()
        handler = front.handlers.get(route.kind)
        if handler is None:
            raise Refused(Refusal("not_enabled", f"{route.kind} is not served here", rule=route.rule))
        if route.tls is not None:
            await _secure(connection, arrival, route.tls, front.contexts)
        else:
            arrival.stream.unread(arrival.first)
        arrival.settled()
        connection.state = route.kind
        await handler(connection)
        if not connection.stream.lost:
            connection.stream.close()
            await arrival.stream.wait_closed()
    except Refused as refused:
        await _refuse(connection, refused.refusal)
    except (Failure, ConnectionError, TimeoutError) as error:
        connection.ended = connection.ended or str(error) or type(error).__name__
        connection.stream.abort()
    finally:
        connection.release()
        front.connections.closed(connection)


async def _route(arrival: Arrival, table: Table, said: str) -> Route:
    """Step 1: the first bytes decide where to, or that there are none."""
    while True:
        outcome = decide(arrival.first, table, said) if arrival.first else silence(table, said=said)
        match outcome:
            case Route():
                return outcome
            case Refusal():
                raise Refused(outcome)
            case Answer():
                arrival.stream.send(outcome.send)
                arrival.first = arrival.first[outcome.consumed :]
                said = outcome.said
                if not arrival.first:
                    await _more(arrival, table, said)
            case None:
                await _more(arrival, table, said)
            case _:
                assert_never(outcome)


async def _more(arrival: Arrival, table: Table, said: str) -> None:
    """Wait for as many octets as could change the outcome: a hello that trickles in is not read anew with each."""
    enough = len(arrival.first) + missing(arrival.first)
    try:
        while len(arrival.first) < enough:
            await arrival.more()
    except LateError as error:
        outcome = silence(table, arrival.first, said)
        if isinstance(outcome, Refusal):
            raise Refused(outcome) from error
        raise Refused(Refusal("incomplete", str(error))) from error
    except ConnectionError as error:
        raise Refused(Refusal("incomplete", str(error))) from error


async def _secure(connection: Connection, arrival: Arrival, tls: Tls, contexts: Contexts) -> None:
    """Steps 2 and 3: the route's own TLS, and who the certificate says is calling."""
    connection.state = "handshake"
    route = connection.route
    context = contexts.context(tls, route.server_name if route else None)
    raw = arrival.stream
    raw.unread(arrival.first)
    try:
        stream = await serve_tls(raw, context, alpn=tls.alpn)
    except LateError as error:
        raise Refused(Refusal("late_handshake", str(error))) from error
    except HandshakeError as error:
        raise Refused(Refusal("handshake_failed", str(error))) from error
    except ConnectionError as error:
        raise Refused(Refusal("handshake_failed", f"TLS handshake failed: {error}")) from error
    connection.stream = stream
    if tls.ask is Ask.NONE:
        return
    certificate = stream.peer_certificate
    if certificate is None:
        if tls.ask is Ask.REQUIRED:
            raise Refused(Refusal("no_certificate", "the route requires a client certificate and none came"))
        return
    try:
        connection.identify(certificate)
    except IdentityError as error:
        raise Refused(Refusal("identity_refused", str(error))) from error


async def _refuse(connection: Connection, refusal: Refusal) -> None:
    """Say so to the client where its protocol can, and record it."""
    connection.ended = refusal.reason
    connection.front.connections.refused(connection.id, connection.source, refusal, connection.route)
    stream = connection.stream
    if stream.lost:
        return
    if refusal.send:
        stream.send(refusal.send)
    linger(stream)
    await stream.wait_closed()
