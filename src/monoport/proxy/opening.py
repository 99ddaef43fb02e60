"""What a database client and the proxy say to each other before a session: the opening, or why there is none.

Belongs here: the steps of a Front, TLS within its protocol, a refusal in its words. Does not belong here: who may do
what, and dialling (database.py).
"""

import asyncio
from dataclasses import replace
from typing import assert_never

import structlog

from monoport.errors import traced
from monoport.net.stream import Stream, linger
from monoport.net.tls import serve_tls
from monoport.proxy.connection import Connection
from monoport.proxy.contexts import Contexts
from monoport.routing.match import match, missing
from monoport.routing.outcome import Answer, Ask, Refusal, Route, Show, Tls, Trust
from monoport.routing.table import Table
from monoport.wire.front import Cancel, Closed, Explaining, Front, Known, Login, Secured, Send, StartTls, Why

EXPLAINING = 3.0  # seconds that a client is kept which shows only how its requests fail: two slow round trips
READ = 4096  # bytes of one read before the login

_log = structlog.get_logger()


async def opened(connection: Connection, front: Front, known: Known, contexts: Contexts) -> Login | Cancel | Closed:
    """Take the client through the protocol's opening; in-protocol TLS brings the identity if nothing has yet.

    contexts: for that TLS. Raises HandshakeError, IdentityError, ConnectionError.
    """
    if connection.identity is not None:
        secured = Secured.CERTIFIED
    else:
        secured = Secured.ANONYMOUS if connection.route is not None and connection.route.tls else Secured.PLAIN
    step = front.begin(secured, known)
    while True:
        match step:
            case None:
                data = await connection.stream.read(READ)
                if not data:
                    return Closed("the client left before its login")
                step = front.receive(data)
            case Send(data):
                await connection.stream.write(data)
                step = front.receive(b"")
            case StartTls(reply, alpn, behind):
                if reply:
                    await connection.stream.write(reply)
                connection.stream.unread(behind)
                if (refused := await _secure(connection, alpn, contexts)) is not None:
                    return refused
                step = front.begin(Secured.CERTIFIED, known)
            case Login() | Cancel() | Closed():
                return step
            case _:
                assert_never(step)


async def _secure(connection: Connection, alpn: str | None, contexts: Contexts) -> Closed | None:
    """In-protocol TLS: its ClientHello is routed like any other, and its certificate says who is calling.

    alpn: the name to select if the client offers it.
    """
    route = connection.route
    assert route is not None  # this handler is reached by routing alone
    outcome = await _routed(connection.stream, connection.front.table, route.protocol or "")
    if isinstance(outcome, Refusal):
        await connection.stream.write(outcome.send)
        return Closed(outcome.reason)
    if outcome is None:
        return Closed("the client left before its ClientHello")
    tls = Tls(show=Show.CLUSTER, ask=Ask.REQUIRED, trust=Trust.USER, alpn=alpn, tls12=True)
    inner = await serve_tls(connection.stream, contexts.context(tls))
    connection.stream = inner
    certificate = inner.peer_certificate
    if certificate is None:
        return Closed("no client certificate in TLS")
    connection.identify(certificate)
    if outcome.target:
        route = replace(route, target=outcome.target)
    if route.tls is None:  # no outer TLS has said anything
        route = replace(route, server_name=outcome.server_name, alpn=outcome.alpn)
    connection.route = route
    return None


async def _routed(stream: Stream, table: Table, said: str) -> Route | Refusal | None:
    """Where the ClientHello that comes next leads, itself left on the stream; None if the client leaves before."""
    first = b""
    while (outcome := match(first, table, said)) is None:
        data = await stream.read(missing(first) if first else READ)
        if not data:
            return None
        first += data
    stream.unread(first)
    assert not isinstance(outcome, Answer)  # of no protocol's requests is there one behind its own
    return outcome


async def tell(connection: Connection, front: Front, why: Why, reason: str) -> None:
    """Send the client why it is refused, and which connection that was, in its protocol's words; let it read them."""
    if not connection.stream.lost:
        connection.stream.send(front.refuse(why, traced(reason, connection.id)))
        if isinstance(front, Explaining):
            await _explain(connection, front)
        linger(connection.stream)
        await connection.stream.wait_closed()


async def _explain(connection: Connection, front: Explaining) -> None:
    """Go on with a refused client until it knows why, for as long as a driver takes for its first request."""
    stream = connection.stream
    try:
        async with asyncio.timeout(EXPLAINING):
            while data := await stream.read(READ):
                step = front.explain(data)
                while isinstance(step, Send):
                    await stream.write(step.data)
                    step = front.explain(b"")
                if step is not None:
                    return
    except TimeoutError:
        return  # a monitor's connection, which has nothing to ask
    except ConnectionError as error:
        _log.debug("client left before it knew why it is refused", connection=connection.id, reason=str(error))
