"""What the agent shows to real servers: short-lived client certificates of the database CA, one per database and user.

Belongs here: the agent's key, the certificates for it, and when to get the next. The key never leaves the process.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from monoport.auth.authorities import TrustedCas
from monoport.auth.keys import KeyPair, generate
from monoport.auth.messages import Certificate

LIFETIME = timedelta(hours=1)  # long enough that most connections need no call to the auth service
MARGIN = timedelta(minutes=5)  # a certificate this near its end is replaced: clocks differ
USERS = 1024  # certificates kept; the one unused for longest goes first


class Signer(Protocol):
    """Who signs; `auth.client.AuthClient` is one."""

    async def database_client_certificate(
        self,
        public_key: str,
        user: str,
        ttl: timedelta | None = None,
        *,
        certificate: str,
        name: str,
        database: str = "",
        connection: str = "",
    ) -> Certificate: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate for a database user with its key, PEM, and its end."""

    certificate: str
    key: str
    expires: datetime


class Issuer:
    """Gets and keeps client certificates.

    Args:
        signer: the auth service.
        cas: the cluster's CAs at present.
        now: the time in UTC.
    """

    def __init__(
        self,
        signer: Signer,
        cas: Callable[[], TrustedCas],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        make: Callable[[], KeyPair] = generate,
    ) -> None:
        self._signer = signer
        self._cas = cas
        self._now = now
        self._key = make()
        self._kept: OrderedDict[tuple[str, str], Shown] = OrderedDict()
        self._asking = asyncio.Lock()

    @property
    def authorities(self) -> tuple[str, ...]:
        """The CAs, PEM, that database servers' certificates are verified against unless configured otherwise."""
        return tuple(self._cas().db)

    async def client_certificate(
        self, user: str, *, certificate: str, name: str, database: str, connection: str
    ) -> Shown:
        """Return a certificate for the database user `user`, kept or new.

        Args:
            user: the database user, who becomes the certificate's common name.
            certificate: of the monoport user on whose behalf, PEM.
            name: of the registered database. database: at the server.
            connection: whose session it is first for, for the audit log.
        Raises AuthError where the auth service refuses or is away and no good certificate is left.
        """
        if (kept := self._good((name, user))) is not None:
            return kept
        async with self._asking:  # many sessions of one user begin at once: one of them asks
            if (kept := self._good((name, user))) is not None:
                return kept
            answer = await self._signer.database_client_certificate(
                self._key.public,
                user,
                LIFETIME,
                certificate=certificate,
                name=name,
                database=database,
                connection=connection,
            )
            shown = Shown(answer.certificate, self._key.private, answer.expires)
            self._kept[name, user] = shown
            while len(self._kept) > USERS:
                self._kept.popitem(last=False)
            return shown

    def _good(self, whom: tuple[str, str]) -> Shown | None:
        shown = self._kept.get(whom)
        if shown is None or shown.expires - self._now() <= MARGIN:
            return None
        self._kept.move_to_end(whom)
        return shown
