"""The auth service's own port: callers that have a certificate, and hosts that join, who have none yet.

Belongs here: telling the two apart by the name that the client asks for, before TLS. Does not belong here: what they
are served (`auth.server`, `proxy.web`).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

import structlog
from starlette.types import ASGIApp

from monoport.auth.client import AuthClient
from monoport.auth.keys import Credentials
from monoport.auth.local import LocalAuth
from monoport.net.arrival import Arrival, Limits
from monoport.net.http import serve_http
from monoport.net.listener import Listener
from monoport.net.tls import HandshakeError, serve_tls
from monoport.proxy.contexts import Contexts, KeyPair
from monoport.proxy.web.app import LIMITS, joining
from monoport.routing.names import BOOTSTRAP
from monoport.routing.outcome import Ask, Show, Tls, Trust
from monoport.wire import clienthello
from monoport.wire.clienthello import HelloError

HTTP = "http/1.1"  # what a host that joins offers
JOINING = Tls(Show.CLUSTER, Ask.NONE, Trust.NONE, HTTP)  # as the bootstrap name has it on a proxy's one port

_log = structlog.get_logger()


class AuthDoor:
    """Serves `auth_service.listen_addr`.

    Args:
        local: the auth service, serving.
    """

    def __init__(self, local: LocalAuth) -> None:
        self._local = local
        self._context: tuple[Credentials, ssl.SSLContext] | None = None

    async def run(self, sockets: Sequence[socket.socket]) -> None:
        """Serve bound sockets until cancelled."""
        local = self._local
        async with AuthClient(local.dial(), lambda: local.credentials) as client:
            app = joining(client, lambda: local.cas)

            async def serve(arrival: Arrival) -> None:
                await self._serve(arrival, app)

            await Listener(sockets, serve, Limits()).run()

    async def _serve(self, arrival: Arrival, app: ASGIApp) -> None:
        name = await _asked_for(arrival)
        arrival.routed()
        arrival.stream.unread(arrival.first)
        if name == BOOTSTRAP:
            await self._join(arrival, app)
            return
        arrival.settled()  # the auth service has deadlines of its own
        await self._local.serve(arrival.stream)

    async def _join(self, arrival: Arrival, app: ASGIApp) -> None:
        try:
            stream = await serve_tls(arrival.stream, self._joining(), alpn=HTTP)
        except HandshakeError as error:
            _log.info("host that would join refused", connection=arrival.id, reason=str(error))
            return
        arrival.settled()
        state = {"id": arrival.id, "source": arrival.source[0], "server_name": BOOTSTRAP}
        await serve_http(stream, app, state=state, limits=LIMITS, client=arrival.source, connection=arrival.id)

    def _joining(self) -> ssl.SSLContext:
        """The context that shows the service's present certificate and asks for none."""
        credentials = self._local.credentials
        if self._context is None or self._context[0] is not credentials:
            pair = KeyPair(credentials.certificate.encode(), credentials.key.encode(), "the auth service's certificate")
            self._context = (credentials, Contexts(pair).context(JOINING))
        return self._context[1]


async def _asked_for(arrival: Arrival) -> str | None:
    """The name that a client wants to reach; None where it names none, or does not begin with TLS as it should.

    Raises LateError or ConnectionError where its first message does not come.
    """
    while True:
        try:
            hello = clienthello.parse(arrival.first)
        except HelloError:
            return None  # the auth service's own TLS says what is wrong with it
        if hello is not None:
            return hello.server_name
        enough = len(arrival.first) + clienthello.missing(arrival.first)
        while len(arrival.first) < enough:  # a hello that trickles in is not read anew with each octet
            await arrival.more()
