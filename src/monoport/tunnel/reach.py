"""How an agent reaches its proxy: TLS to the one port, and a proxy's own host certificate inside.

Belongs here: dialling the proxy, for the tunnel and for dial-backs, and believing it. Not here: what is served then.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import asyncssh

from monoport.access.identity import ClusterCas, IdentityError, Kind, from_ssh
from monoport.auth.keys import Credentials
from monoport.errors import Failure
from monoport.net import sockets
from monoport.net.stream import Stream
from monoport.net.tls import TlsStream, connect_tls
from monoport.tunnel import link

ALPN = "teleport-reversetunnel"
DIAL_SECONDS = 10.0  # TCP and TLS to the proxy


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where the proxy is: the host that its certificate must name, and the port."""

    host: str
    port: int


async def dial_tls(proxy: Proxy, cas: ClusterCas) -> Stream:
    """Return a TLS stream to the proxy's one port, verified against the cluster's host CA.

    Raises Failure or OSError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata="\n".join(cas.host))
    context.set_alpn_protocols([ALPN])
    stream = await _secured(proxy, context, proxy.host)
    if stream.selected_alpn != ALPN:
        stream.abort()
        raise Failure(f"{proxy.host}:{proxy.port} does not speak {ALPN}")
    return stream


def back(proxy: Proxy, credentials: Callable[[], Credentials]) -> Callable[[str], Awaitable[Stream]]:
    """What dials back: a TLS connection to the proxy's one port under a server name, showing these credentials.

    Raises Failure or OSError, each time it is called.
    """
    made: tuple[Credentials, ssl.SSLContext] | None = None

    async def dial_back(server_name: str) -> Stream:
        nonlocal made
        now = credentials()
        if made is None or made[0] != now:  # certificates are renewed
            made = now, now.context()
        return await _secured(proxy, made[1], server_name)

    return dial_back


async def _secured(proxy: Proxy, context: ssl.SSLContext, server_name: str) -> TlsStream:
    async with asyncio.timeout(DIAL_SECONDS):
        raw = await sockets.connect(proxy.host, proxy.port, DIAL_SECONDS)
        try:
            return await connect_tls(raw, context, server_hostname=server_name)
        except BaseException:
            raw.abort()
            raise


class ProxyLink(link.ClientLink):
    """The connection to the proxy, which must show a proxy's host certificate for the name that was dialled."""

    def validate_server_host_key(self, key_data: bytes) -> asyncssh.SSHKey:
        owner = self.get_owner()
        if not isinstance(owner, ProxyClient):
            raise asyncssh.HostKeyNotVerifiable("the connection is closed")
        owner.check(key_data)
        return asyncssh.public_key.decode_ssh_certificate(key_data).key


class ProxyClient(asyncssh.SSHClient):
    def __init__(self, cas: ClusterCas, proxy: Proxy, now: Callable[[], datetime]) -> None:
        self._cas, self._proxy, self._now = cas, proxy, now

    def check(self, certificate: bytes) -> None:
        try:
            identity = from_ssh(certificate, self._cas, self._now())
        except IdentityError as error:
            raise asyncssh.HostKeyNotVerifiable(f"the proxy's host certificate: {error}") from error
        if identity.kind is not Kind.HOST or "proxy" not in identity.roles:
            raise asyncssh.HostKeyNotVerifiable(f"{identity} is not a proxy")
        if not {self._proxy.host, self._cas.cluster}.intersection(identity.principals):
            raise asyncssh.HostKeyNotVerifiable(f"the proxy's host certificate is not for {self._proxy.host}")
