"""One connection to the auth service: mutual TLS, who is calling, then HTTP for as long as they may stay.

Belongs here: the TLS context, limits, and ending connections of expired or locked callers. What they ask is `api`;
where connections come from (a Unix socket, TCP, a proxy that passes them through) is not known here.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

import structlog
from cryptography import x509
from starlette.applications import Starlette

from monoport.access.identity import Identity, IdentityError, from_x509
from monoport.access.lease import Leases
from monoport.access.resources import Lock
from monoport.auth.keys import Credentials, auth_alpn, load_chain
from monoport.net.http import Limits, serve_http
from monoport.net.stream import Stream
from monoport.net.tls import HandshakeError, TlsStream, serve_tls

_log = structlog.get_logger()

HANDSHAKE_SECONDS = 10.0  # design section 6
CONNECTIONS = 4096  # in all, handshakes too: about 100 MiB of TLS state
PER_CALLER = 256  # one host's pool holds 16; workers and restarts multiply that
HTTP = Limits(body_bytes=1024 * 1024, requests=100_000)  # a batch of audit events; a host stays connected for days


class Server:
    """Serves the auth API on streams.

    Args:
        app: answers requests; finds the caller in `scope["state"]["identity"]`.
        credentials: the server's certificate and the cluster's CAs, asked for every connection.
        now: the time, aware, UTC.
        limits: of each HTTP connection.
    """

    def __init__(
        self,
        app: Starlette,
        credentials: Callable[[], Credentials],
        now: Callable[[], datetime],
        limits: Limits = HTTP,
    ) -> None:
        self._app = app
        self._credentials = credentials
        self._now = now
        self._limits = limits
        self._leases = Leases()
        self._administrators = Leases()
        self._open = 0
        self._callers: Counter[str] = Counter()
        self._context: tuple[Credentials, ssl.SSLContext] | None = None

    @property
    def callers(self) -> int:
        """How many connections have a verified caller at present."""
        return len(self._leases) + len(self._administrators)

    async def serve(self, stream: Stream) -> None:
        """Serves one connection to its end; errors of its peer are logged, never raised."""
        if self._open >= CONNECTIONS:
            _log.warning("auth connection refused", reason=f"{CONNECTIONS} connections are open")
            stream.abort()
            return
        self._open += 1
        try:
            await self._serve(stream)
        except HandshakeError as error:  # the stream is ended, behind the alert that says why
            _log.info("auth connection refused", reason=str(error))
        except (ConnectionError, TimeoutError, IdentityError) as error:
            _log.info("auth connection ended", reason=str(error) or type(error).__name__)
            stream.abort()
        except Exception as error:  # noqa: BLE001 - one connection's fault must not end the service; it is logged
            _log.error("auth connection failed", error=repr(error), exc_info=error)
            stream.abort()
        finally:
            self._open -= 1

    def sweep(self, locks: Iterable[Lock]) -> None:
        """Ends the connections of callers who have expired or are locked; to be called about once a second."""
        self._leases.sweep(self._now(), list(locks))
        self._administrators.sweep(self._now(), ())  # they must be able to lift any lock

    async def _serve(self, stream: Stream) -> None:
        credentials = self._credentials()
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            secure = await serve_tls(stream, self._context_for(credentials))
        try:
            identity = self._identify(secure, credentials)
            with self._counted(identity):
                leases = self._administrators if "admin" in identity.roles else self._leases
                lease = leases.add(identity, identity.expires, lambda reason: _end(secure, identity, reason))
                try:
                    await serve_http(secure, self._app, state={"identity": identity}, limits=self._limits)
                finally:
                    lease.close()
        except BaseException:
            secure.abort()
            raise

    def _identify(self, secure: TlsStream, credentials: Credentials) -> Identity:
        certificate = secure.peer_certificate
        if certificate is None:
            raise ConnectionError("the caller showed no certificate")
        return from_x509(x509.load_der_x509_certificate(certificate), credentials.cas, self._now())

    @contextmanager
    def _counted(self, identity: Identity) -> Iterator[None]:
        name = f"{identity.kind}:{identity}"
        if self._callers[name] >= PER_CALLER:
            raise ConnectionError(f"{identity} has {PER_CALLER} connections already")
        self._callers[name] += 1
        try:
            yield
        finally:
            self._callers[name] -= 1
            if not self._callers[name]:
                del self._callers[name]

    def _context_for(self, credentials: Credentials) -> ssl.SSLContext:
        """The context for these credentials, made once: renewal brings other credentials and another context."""
        if self._context is None or self._context[0] is not credentials:
            self._context = (credentials, _server_context(credentials))
        return self._context[1]


def _server_context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="\n".join((*credentials.cas.user, *credentials.cas.host)))
    load_chain(context, credentials.certificate, credentials.key)
    context.num_tickets = 0  # a ticket would outlive what the certificate said
    context.set_alpn_protocols([auth_alpn(credentials.cluster), "http/1.1"])
    return context


def _end(stream: Stream, identity: Identity, reason: str) -> None:
    _log.info("auth connection ended", caller=str(identity), reason=reason)
    stream.abort(ConnectionError(reason))
