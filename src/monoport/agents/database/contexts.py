"""TLS towards one real server: a context for each of its users, made anew when certificates or CAs have changed.

Belongs here: what the configuration says of TLS, as contexts. When TLS begins, each protocol knows.
"""

import ssl
from collections.abc import Sequence

from monoport.agents.database.certificates import Issuer, Shown
from monoport.agents.database.engine import Unreachable
from monoport.auth.keys import load_chain
from monoport.config.model import Database

USERS = 1024  # contexts kept: as many users as certificates are kept for


class Contexts:
    """The contexts for one registered database.

    Args:
        database: as configured. issuer: knows the cluster's CAs of database servers.
        alpn: what is offered to the server.
    """

    def __init__(self, database: Database, issuer: Issuer, alpn: Sequence[str] = ()) -> None:
        self._database = database
        self._issuer = issuer
        self._alpn = list(alpn)
        self._kept: dict[str, tuple[Shown | None, tuple[str, ...], ssl.SSLContext]] = {}  # by database user

    def context(self, user: str, shown: Shown | None) -> ssl.SSLContext:
        """Return the context for a database user, who shows that certificate. Raises Unreachable."""
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
            what = "cannot be verified: its CA file cannot be read"
            raise Unreachable(f'database "{self._database.name}" {what}', f"{what}: {error}") from error
