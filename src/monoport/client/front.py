"""The way to the proxy: every client's TCP and TLS, with the right ALPN, SNI and CAs.

Belongs here: contexts, dialling, and what went wrong in a user's words. Does not belong here: what is spoken then.
"""

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

from monoport.client.names import Address
from monoport.client.profile import Profile
from monoport.errors import Failure
from monoport.net.sockets import ConnectError, SocketStream, connect
from monoport.net.stream import Stream
from monoport.net.tls import TlsStream, connect_tls

CONNECT_TIMEOUT = 10.0  # seconds for TCP; a SYN is repeated after 1, 3 and 7 of them
TLS_TIMEOUT = 10.0  # seconds for the handshake, the proxy's own limit
BOOTSTRAP = "bootstrap.teleport.cluster.local"  # SNI of first login and join, shown the host CA's certificate
SSH_ALPN = "teleport-proxy-ssh"
HTTP_ALPN = "http/1.1"
_LEAST = ssl.TLSVersion.TLSv1_2  # of the web; said here since Debian's Python leaves even TLS 1.0 to OpenSSL's settings


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class NotTrusted(Failure):
    """The server's certificate did not verify."""


def cluster_context(
    host_cas: tuple[str, ...], alpn: str, credentials: Credentials | None = None, *, preferred: str = ""
) -> ssl.SSLContext:
    """A context that trusts the cluster's host CAs and nobody else.

    Args:
        host_cas: PEM certificates.
        alpn: the one protocol that is offered, but for one that is `preferred` to it.
        credentials: the client certificate to present, if any.

    Raises:
        Failure: no CAs, or the credentials cannot be read or do not belong together.
    """
    context = client_context(host_cas, credentials)
    context.set_alpn_protocols([preferred, alpn] if preferred else [alpn])
    return context


def client_context(host_cas: tuple[str, ...], credentials: Credentials | None) -> ssl.SSLContext:
    """The same without any protocol's name; raises Failure."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _trust(context, host_cas)
    if credentials is not None:
        try:
            context.load_cert_chain(credentials.certificate, credentials.key)
        except FileNotFoundError as error:
            raise Failure(f"{credentials.certificate} or its key is missing: log in again") from error
        except (ssl.SSLError, OSError) as error:
            raise Failure(f"{credentials.certificate} cannot be used: {error}") from None
    return context


def web_context(more_cas: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A context for the web certificate: the system's roots, and the CAs of an earlier login."""
    context = ssl.create_default_context()
    context.minimum_version = _LEAST
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if more_cas:
        _trust(context, more_cas)
    context.set_alpn_protocols([HTTP_ALPN])
    return context


def blind_context() -> ssl.SSLContext:
    """A context that verifies nothing: for fetching what is then compared with a pin, and for `--insecure`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _LEAST
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([HTTP_ALPN])
    return context


def _trust(context: ssl.SSLContext, cas: tuple[str, ...]) -> None:
    try:
        context.load_verify_locations(cadata="\n".join(cas))
    except (ssl.SSLError, ValueError) as error:
        raise Failure(f"the cluster's CA certificates cannot be read: {error}") from None


async def dial(
    address: Address,
    context: ssl.SSLContext,
    server_name: str,
    alpn: str = "",
    whom: str = "the proxy",
    *,
    preferred: str = "",
) -> TlsStream:
    """A TLS connection to the proxy.

    Args:
        address: where it listens.
        context: whom to trust and what to offer.
        server_name: SNI, and the name that the certificate must carry where the context verifies one.
        alpn: the protocol that the proxy must have selected; empty if it does not matter.
        whom: what listens there, for errors.
        preferred: the protocol that it may have selected instead, "" for none.

    Raises:
        NotTrusted: its certificate did not verify.
        Failure: it cannot be reached, does not speak TLS, or does not serve that protocol.
    """
    raw = await dial_tcp(address, whom)
    known = origin(raw)  # the proxy refuses us below any protocol that could carry its id of the connection
    try:
        async with asyncio.timeout(TLS_TIMEOUT):
            stream = await connect_tls(raw, context, server_hostname=server_name)
    except TimeoutError:
        raise Failure(f"no TLS with {address} within {TLS_TIMEOUT:g} s{known}") from None
    except OSError as error:
        raise _explain(address, error, alpn, known) from None
    if alpn and stream.selected_alpn not in (alpn, preferred or alpn):
        stream.abort()
        why = "it is not enabled there, or this is not a monoport proxy"
        raise Failure(f"{address} does not serve {alpn}: {why}{known}")
    return stream


def origin(stream: Stream) -> str:
    """Our address on the way to the proxy as " [from HOST:PORT]", "" where it is not known.

    It is the address by which the proxy's log and `tctl conns ls` name us, unless something in between has changed it.
    """
    raw = stream.raw if isinstance(stream, TlsStream) else stream
    return f" [from {raw.local}]" if isinstance(raw, SocketStream) and raw.local else ""


async def dial_tcp(address: Address, whom: str = "the proxy") -> Stream:
    """A TCP connection to the proxy.

    Raises:
        Failure: it cannot be reached, and why.
    """
    try:
        return await connect(address.host, address.port, CONNECT_TIMEOUT)
    except ConnectError as error:
        raise Failure(f"cannot reach {whom}: {error}") from None


def _explain(address: Address, error: OSError, alpn: str, known: str) -> Failure:
    text = str(error).removeprefix("TLS handshake failed: ")
    if "certificate not accepted" in text:
        return NotTrusted(f"the certificate of {address} does not verify: {text.partition(': ')[2]}")
    if "no application protocol" in text:
        return Failure(f"{address} does not serve {alpn or 'this protocol'}: it is not enabled there{known}")
    return Failure(f"no TLS with {address}: {text}{known}")


@dataclass(frozen=True, slots=True)
class Front:
    """One profile's proxy, as its clients reach it."""

    profile: Profile

    async def dial(self, alpn: str, credentials: Credentials | None = None, server_name: str = "") -> TlsStream:
        """A connection routed by ALPN, verified against the cluster's host CAs.

        Args:
            alpn: the protocol's name.
            credentials: the client certificate to present, if any.
            server_name: if another than the proxy's own, such as the cluster's for its auth service.

        Raises:
            Failure: in one line.
        """
        context = cluster_context(self.profile.host_cas, alpn, credentials)
        return await self.dial_with(context, alpn, server_name)

    async def dial_with(
        self, context: ssl.SSLContext, alpn: str, server_name: str = "", *, preferred: str = ""
    ) -> TlsStream:
        """The same with a context made before, for who dials often."""
        name = server_name or self.profile.server_name
        return await dial(self.profile.proxy, context, name, alpn, preferred=preferred)

    async def dial_ssh(self) -> Stream:
        """A connection to the SSH proxy: wrapped in TLS where the proxy routes by ALPN, else to its own port."""
        if self.profile.tls_routing or self.profile.plain_ssh is None:
            return await self.dial(SSH_ALPN)
        return await dial_tcp(self.profile.plain_ssh)
