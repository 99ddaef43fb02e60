"""The agent's end of a sealed session: TLS with the user's own client, through a proxy that can no longer read it.

Belongs here: that handshake, and that whoever shakes hands is whom the proxy announced. Not here: the proxy's part
(`tunnel.sealing`), what is spoken then (the engines).
"""

import asyncio
import hmac
import ssl
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from monoport.auth.authorities import TrustedCas
from monoport.auth.keys import Credentials, load_chain
from monoport.net.stream import Stream
from monoport.net.tls import HandshakeError, TlsStream, serve_tls
from monoport.tunnel.preface import Preface
from monoport.tunnel.sealing import BINDING, stepped_aside

SEALING = 8.0  # seconds from the accepted dial to the end of the handshake; MySQL servers wait ten for a login


class Sealer:
    """Shakes hands with users' clients in the name of this host.

    Args: its certificate and key, and the cluster's CAs, both asked for each time since they change.
    """

    def __init__(self, host: Callable[[], Credentials], cas: Callable[[], TrustedCas]) -> None:
        self._host, self._cas = host, cas
        self._made: tuple[Credentials, tuple[str, ...], ssl.SSLContext] | None = None

    async def open(self, asked: Preface, stream: Stream) -> TlsStream:
        """Return the stream to the user's client, its opening first.

        Args: what the proxy asked for, and the stream on which that was accepted.
        Raises HandshakeError: no handshake, or not with the certificate that the proxy has seen, or by a client that
        began another session. FrameError, TimeoutError, ConnectionError.
        """
        announced = x509.load_pem_x509_certificate(asked.certificate.encode()).public_bytes(Encoding.DER)
        async with asyncio.timeout(SEALING):
            opening, below = await stepped_aside(stream)
            client = await serve_tls(below, self._context())
            if client.peer_certificate != announced:
                client.abort()
                raise HandshakeError("the client of a sealed session shows another certificate than the proxy has seen")
            bound = await client.read_exactly(BINDING)
        if not hmac.compare_digest(bound, opening[-BINDING:]):
            client.abort()
            raise HandshakeError("the client of a sealed session is not the one that began it")
        client.unread(opening[:-BINDING])
        return client

    def _context(self) -> ssl.SSLContext:
        host, users = self._host(), tuple(self._cas().user)
        if self._made is None or self._made[:2] != (host, users):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0  # a resumed session would skip the certificate
            context.options |= ssl.OP_NO_TICKET
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata="\n".join(users))
            load_chain(context, host.certificate, host.key)
            self._made = host, users, context
        return self._made[2]
