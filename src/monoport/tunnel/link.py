"""asyncssh's connections as monoport uses them: algorithms, streams, and how a full link holds writers back.

Belongs here: what the tunnel, the SSH proxy and the node agent share. Not here: who may do what.
"""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import asyncssh
from asyncssh.constants import MSG_IGNORE

from monoport.net.stream import Stream
from monoport.tunnel.packets import Packets
from monoport.tunnel.transport import StreamTransport

# AES-GCM is one call into OpenSSL per packet; chacha20 in asyncssh is several and far slower, so it is not offered.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
GCM_CLIENTS = ("SSH-2.0-OpenSSH_7", "SSH-2.0-OpenSSH_8", "SSH-2.0-OpenSSH_9", "SSH-2.0-OpenSSH_1")  # 10 and on
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
KEY_EXCHANGES = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
)
WINDOW = 262_144  # bytes of one channel that may wait in one direction
PACKET = 32_768  # the payload every SSH implementation must take (RFC 4253 section 6.1)
TUNNEL_PACKET = 131_072  # where our own ends send: a quarter of the packets, whose cost is mostly each one's own
CERTIFICATE = b"-cert-v01@openssh.com"  # ends the type of every OpenSSH certificate (PROTOCOL.certkeys)
MAX_TYPE = 64  # bytes at the beginning of a key, in which its type stands
ATTEMPTS = 32  # keys that a client may try: full ssh-agents hold a dozen, and each try is asked for twice
CLOSE_SECONDS = 5.0  # for a goodbye; a peer that does not take it is cut
USER_LOGIN = 60.0  # seconds: people touch security keys
AGENT_LOGIN = 15.0  # seconds: a machine needs no thought

# Packets sent while the stream below is full. Whoever has data is held back then: these are answers, windows and ends.
UNREAD = 65_536

ALIVE = 7.0  # seconds of silence until a peer is probed, and between probes
# Probes without an answer; at the third interval, 21 s, the peer is dead, and CLOSE_SECONDS later it holds nothing.
MISSED = 2

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host's private key (PKCS#8 PEM) and its OpenSSH host certificate (one line)."""

    key: str = field(repr=False)
    certificate: str

    def pair(self) -> tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]:
        """Return both as asyncssh takes them; raises asyncssh.KeyImportError."""
        return _pair(self)


@lru_cache(maxsize=4)  # the roles of one process, before and after a renewal; parsing costs 0.2 ms a connection
def _pair(host: HostKey) -> tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]:
    return asyncssh.import_private_key(host.key), asyncssh.import_certificate(host.certificate)


def algorithms() -> Options:
    """Return asyncssh's options for the algorithms offered on every monoport connection."""
    return {
        "encryption_algs": list(CIPHERS),
        "mac_algs": list(MACS),
        "kex_algs": list(KEY_EXCHANGES),
        "compression_algs": ["none"],
    }


class Link(Packets):
    """Mixed into asyncssh's connections: says when the stream below is full, and wakes who waits for room."""

    blocked = False
    _unread = 0  # packets since the stream below was full
    _wakers: list[Callable[[], None]]

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        wakers, self._wakers = self.__dict__.get("_wakers", []), []
        for wake in wakers:
            wake()

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when the stream below has room again."""
        self.__dict__.setdefault("_wakers", []).append(wake)

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        # asyncssh sends an empty IGNORE before every packet, which only CBC ciphers need (RFC 4251 section 9.3.1)
        if pkttype == MSG_IGNORE:
            return
        super().send_packet(pkttype, *args, handler=handler)
        self._unread = self._unread + 1 if self.blocked else 0
        if self._unread > UNREAD:  # a peer that asks and asks, and reads no answer, could have all memory
            self._force_close(asyncssh.ProtocolError("the peer reads no answers"))


class ServerLink(Link, asyncssh.SSHServerConnection):
    """An SSH server's connection; its options come from no file, so there is nothing to reload."""

    _attempts = 0
    _refused = False

    def set_extra_info(self, **kwargs: Any) -> None:
        super().set_extra_info(**kwargs)
        # asyncssh tells itself the client's version just before it offers algorithms, of which the client's order
        # decides: OpenSSH would take AES-CTR, which costs half as much again as the AES-GCM that it has too.
        if str(kwargs.get("client_version", "")).startswith(GCM_CLIENTS):
            self._enc_algs = [name for name in self._enc_algs if b"gcm" in name]

    async def reload_config(self) -> None:
        return

    def attempt(self) -> None:
        """Count one try to authenticate; raises asyncssh.DisconnectError, which ends the connection, after ATTEMPTS."""
        self._attempts += 1
        if self._attempts > ATTEMPTS:
            raise asyncssh.DisconnectError(
                asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, f"more than {ATTEMPTS} attempts to authenticate"
            )

    def refused(self, reason: str) -> None:
        """Tell a client that is not let in why, once: of several keys that fail, the first reason is the one shown."""
        if not self._refused:
            self._refused = True
            self.send_auth_banner(f"{reason}\r\n")


def certifies(public_key: bytes) -> bool:
    """Whether a public key is a certificate by its type; clients offer all their keys, and plain ones prove nothing."""
    return CERTIFICATE in public_key[:MAX_TYPE]


class ClientLink(Link, asyncssh.SSHClientConnection):
    """An SSH client's connection."""


S = TypeVar("S", bound=ServerLink)
C = TypeVar("C", bound=ClientLink)
L = TypeVar("L", bound=Link)


def server_options(host: HostKey, login: float, packet: int = PACKET) -> Any:
    """Return options of an SSH server that shows one host certificate and by itself serves nothing.

    Args: the host's key and certificate, the seconds until authentication must be done, and the octets of data that a
    client may put into one packet.
    """
    return asyncssh.SSHServerConnectionOptions(
        server_host_keys=[host.pair()],
        login_timeout=login,
        gss_host=None,
        password_auth=False,
        kbdint_auth=False,
        agent_forwarding=False,
        x11_forwarding=False,
        line_editor=False,
        encoding=None,
        window=WINDOW,
        max_pktsize=packet,
        server_version="monoport",
        **algorithms(),
    )


@asynccontextmanager
async def serving(
    stream: Stream, options: Any, make: type[S], owner: asyncssh.SSHServer, peer: tuple[str, int]
) -> AsyncIterator[S]:
    """Run an SSH server over `stream` until the body ends; enters once the client is authenticated.

    Args: the options of `server_options`, the connection's class, the SSHServer that answers, the peer's address.
    Raises asyncssh.Error or OSError where the client does not authenticate.
    """
    loop = asyncio.get_running_loop()
    mine = copy.copy(options)
    mine.protocol_factory = lambda: owner
    mine.waiter = loop.create_future()
    async with _running(stream, make(loop, mine, wait="auth"), mine.waiter, peer) as connection:
        yield connection


@asynccontextmanager
async def calling(stream: Stream, options: Any, make: type[C], peer: tuple[str, int]) -> AsyncIterator[C]:
    """Run an SSH client over `stream` until the body ends; enters once the server has accepted us.

    Raises asyncssh.Error or OSError where it does not.
    """
    loop = asyncio.get_running_loop()
    mine = copy.copy(options)
    mine.waiter = loop.create_future()
    async with _running(stream, make(loop, mine, wait="auth"), mine.waiter, peer) as connection:
        yield connection


@asynccontextmanager
async def _running(
    stream: Stream, connection: L, ready: "asyncio.Future[None]", peer: tuple[str, int]
) -> AsyncIterator[L]:
    transport = StreamTransport(stream, connection, peer)
    transport.attach()
    try:
        await ready
        yield connection
    finally:
        connection.abort()
        await connection.wait_closed()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await transport.closed.wait()
        except TimeoutError:
            stream.abort()
