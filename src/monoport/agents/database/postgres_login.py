"""The agent's side of PostgreSQL's opening, towards a real server: a login by certificate or by password.

Belongs here: moving the opening's bytes, and what ties a password's proof to its TLS connection. What the bytes say is
in `wire/postgres`; whose password it is, the engine knows.
"""

import asyncio
import secrets

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from monoport.net.stream import Stream
from monoport.net.tls import TlsStream
from monoport.wire.postgres.backend import Backend
from monoport.wire.postgres.login import Login, LoginError

_TOO_OLD = (hashes.MD5, hashes.SHA1)  # RFC 5929 puts SHA-256 in their place


def login(server: TlsStream, user: str, password: str, *, verified: bool) -> Login:
    """Return what proves `password` on this connection and no other; `verified` as for `Login`."""
    shown = server.shown_certificate
    channel = None if shown is None else end_point(shown)
    return Login(user, password, secrets.token_urlsafe(24), verified=verified, channel=channel)


def end_point(certificate: bytes) -> bytes | None:
    """Return the channel binding `tls-server-end-point` of a server's certificate, DER; None where it has none.

    Source: RFC 5929 section 4.1, which leaves signatures without a hash of their own, such as Ed25519's, undefined.
    """
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        algorithm = loaded.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None  # OpenSSL has read more than we can
    if algorithm is None:
        return None
    return loaded.fingerprint(hashes.SHA256() if isinstance(algorithm, _TOO_OLD) else algorithm)


async def open_session(server: Stream, startup: bytes, backend: Backend, client: Stream) -> bytes:
    """Bring the server to its first ReadyForQuery, or to its own end, and return what it said last.

    At its own end the client has got what it said. Raises AuthenticationDemanded, LoginError, LoginRefused,
    ProtocolError, ConnectionError.
    """
    await server.write(startup)
    said = b""
    heard = False
    while not backend.ready and (data := await server.read()):
        if backend.admitted or not backend.proves:
            said = backend.receive(data)
        else:
            said = await asyncio.to_thread(backend.receive, data)  # keys are derived there
        if backend.answer:
            answer, backend.answer = backend.answer, b""
            await server.write(answer)
        heard = heard or bool(said)
        await client.write(said)
    if backend.proves and not heard:
        raise LoginError("ends the connection in the middle")  # the client cannot see of what
    return said
