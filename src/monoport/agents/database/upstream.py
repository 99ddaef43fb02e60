"""One registered database's real server as every engine reaches it: TCP, what is shown to it, and TLS that verifies.

Belongs here: dialling, contexts, the password file, and what a failure is called. When TLS begins and how a password is
proven, each protocol knows.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from monoport.agents.database import passwords
from monoport.agents.database.certificates import Issuer, Shown
from monoport.agents.database.engine import Session, Unreachable
from monoport.auth.keys import load_chain
from monoport.config.model import Database
from monoport.net import sockets
from monoport.net.stream import Stream

CONNECT = 10.0  # seconds for TCP and TLS to the real server
USERS = 1024  # contexts kept: as many users as certificates are kept for

Secured = TypeVar("Secured")


class Upstream:
    """The real server of one registered database.

    Args:
        database: as configured. issuer: client certificates, and the cluster's CAs of database servers.
        port: where its uri names none. alpn: what is offered to the server.
        always_shows: a certificate, even where a password says who the user is: servers may let in nobody without.
    """

    def __init__(
        self, database: Database, issuer: Issuer, port: int, alpn: Sequence[str] = (), *, always_shows: bool = False
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._port = port
        self._alpn = list(alpn)
        self._always_shows = always_shows
        self._kept: dict[str, tuple[Shown | None, tuple[str, ...], ssl.SSLContext]] = {}  # by database user

    @property
    def verified(self) -> bool:
        """Whether TLS proves the server's name."""
        return self._database.tls.mode != "insecure"

    async def reach(self, session: Session) -> None:
        """Connect for a session, over which nothing is said yet; where its password is missing, not even that.

        Raises Unreachable.
        """
        await self.password(session.user)
        session.server = await self.dial()

    async def proof(self, session: Session) -> tuple[ssl.SSLContext, str | None]:
        """What proves who the user is: TLS that shows a certificate, and `password`. Raises Unreachable, AuthError."""
        password = await self.password(session.user)
        return await self.certified(session), password

    async def certified(self, session: Session) -> ssl.SSLContext:
        """TLS that shows the certificate of the session's user, none where a password will do. Raises as `proof`."""
        if self._database.password_file is not None and not self._always_shows:
            return self.context()
        return self.context(session.user, await session.shown(self._issuer, self._database.name))

    async def password(self, user: str) -> str | None:
        """The password of a database user; None without a password file. Raises Unreachable."""
        if self._database.password_file is None:
            return None
        try:
            return await asyncio.to_thread(passwords.password, self._database.password_file, user)
        except passwords.PasswordError as error:
            what = "has no password for this database user: ask whoever runs its agent"
            raise self.unreachable(what, str(error)) from error

    async def dial(self) -> Stream:
        """Return a TCP connection. Raises Unreachable."""
        uri = self._database.uri
        try:
            return await sockets.connect(uri.host, uri.port or self._port, CONNECT)
        except ConnectionError as error:
            raise self.unreachable("cannot be reached from its agent", str(error)) from error

    async def secure(self, raw: Stream, begin: Callable[[Stream, str], Awaitable[Secured]]) -> Secured:
        """Have `begin` start TLS over `raw` and return what it returns; `raw` is ended if it fails.

        begin: is given the stream and the name in the server's certificate.
        Raises Unreachable, and what `begin` raises beside ConnectionError.
        """
        try:
            async with asyncio.timeout(CONNECT):
                return await begin(raw, self._database.tls.server_name or self._database.uri.host)
        except TimeoutError as error:
            raw.abort()
            raise self.unreachable(f"did not start TLS within {CONNECT:g} s") from error
        except ConnectionError as error:
            raw.abort()
            raise self.unreachable("cannot be reached over TLS", str(error)) from error
        except BaseException:
            raw.abort()
            raise

    def unreachable(self, what: str, detail: str = "", hint: str = "") -> Unreachable:
        """The error for what is wrong with the server: for the user, for the log, and what to do about it."""
        return Unreachable(f'database "{self._database.name}" {what}', f"{what}: {detail}" if detail else what, hint)

    def context(self, user: str = "", shown: Shown | None = None) -> ssl.SSLContext:
        """Return the context for a database user, who shows that certificate, or for nobody. Raises Unreachable."""
        authorities = self._authorities()
        kept = self._kept.get(user)
        if kept is not None and kept[0] is shown and kept[1] == authorities:
            return kept[2]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._alpn:
            context.set_alpn_protocols(self._alpn)
        mode = self._database.tls.mode
        context.check_hostname = mode == "verify-full"
        context.verify_mode = ssl.CERT_NONE if mode == "insecure" else ssl.CERT_REQUIRED
        if authorities:
            context.load_verify_locations(cadata="\n".join(authorities))
        if shown is not None:
            load_chain(context, shown.certificate, shown.key)
        if len(self._kept) >= USERS:
            self._kept.pop(next(iter(self._kept)))
        self._kept[user] = (shown, authorities, context)
        return context

    def _authorities(self) -> tuple[str, ...]:
        file = self._database.tls.ca_cert_file
        if file is None:
            return self._issuer.authorities
        try:
            return (file.read_text(encoding="ascii"),)
        except (OSError, ValueError) as error:
            raise self.unreachable("cannot be verified: its CA file cannot be read", str(error)) from error
