"""From what a user or host may be to the certificates that say so.

Belongs here: lengths of validity, logins and options taken from roles, and that both certificates are for one key. Who
may have a certificate at all, `service`, `join` and `administration` decide; profiles are in `certificates`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from monoport.access.forwarding import Forwarding
from monoport.access.identity import Identity, Kind
from monoport.access.resources import Role, User
from monoport.access.supposed import signed_in
from monoport.auth import certificates
from monoport.auth.authorities import Authorities, TrustedCas, pin
from monoport.auth.messages import Certificate, HostCertificates, UserCertificates
from monoport.auth.publickeys import PublicKey, load_key, load_ssh_key
from monoport.auth.refusals import Invalid

HOST_TTL = timedelta(days=7)  # an agent that is off for a week joins again; one that runs renews many times
SERVER_TTL = timedelta(hours=24)  # of a database server's certificate, if nobody says otherwise
# what permit-port-forwarding of an OpenSSH certificate stands for; which of them, the node decides by the roles
_PORTS = (Forwarding.PORT, Forwarding.REMOTE_PORT, Forwarding.UNIX, Forwarding.REMOTE_UNIX)
MAX_SERVER_TTL = timedelta(days=366)  # database servers are reconfigured by people


class Issuer:
    """Signs for one cluster.

    Args:
        authorities: its CAs with their keys.
        now: the time, aware, UTC.
    """

    prefix = "/authorities"  # where the CAs are stored: changes there go to every watch

    def __init__(self, authorities: Authorities, now: Callable[[], datetime]) -> None:
        self._authorities = authorities
        self._now = now

    def trusted(self) -> TrustedCas:
        """The public parts of the CAs."""
        return self._authorities.trusted()

    def pins(self) -> tuple[str, ...]:
        """What --ca-pin takes."""
        return self._authorities.pins

    def describe(self) -> tuple[dict[str, Any], ...]:
        """One row for each CA, for `tctl status`."""
        return tuple(
            {
                "kind": str(kind),
                "pin": pin(one.certificate),
                "expires": one.certificate.not_valid_after_utc.isoformat(),
                "ssh": one.ssh_line if kind.signs_ssh else "",
            }
            for kind, several in self._authorities.of.items()
            for one in several
        )

    def identity(
        self, user: User, roles: Mapping[str, Role | None], ttl: timedelta | None, login_ip: str = ""
    ) -> Identity:
        """What a login makes of a user at this moment.

        Args:
            roles: those the user has; None for one that no longer exists, which then denies everything.
            ttl: wanted length; roles set the longest.
        """
        known = {name: role for name, role in roles.items() if role is not None}
        return signed_in(user, self._authorities.cluster, known, self._now(), ttl, login_ip)

    def user(
        self, identity: Identity, roles: Mapping[str, Role | None], public_key: str, ssh_public_key: str | None
    ) -> UserCertificates:
        """A user's certificates, the SSH one only if its key is given; raises Invalid if the keys differ."""
        ssh = ""
        if ssh_public_key is not None:
            _require_same(public_key, ssh_public_key)
            options = [role.spec.options for name in identity.roles if (role := roles.get(name)) is not None]
            ssh = certificates.issue_user_ssh(
                self._authorities.user,
                ssh_public_key,
                identity,
                self._now(),
                forward_agent=any(one.forward_agent for one in options),
                port_forwarding=any(getattr(one, kind) for one in options for kind in _PORTS),
                x11_forwarding=any(one.permit_x11_forwarding for one in options),
            )
        return UserCertificates(
            certificate=certificates.issue_user(self._authorities.user, public_key, identity, self._now()),
            ssh_certificate=ssh,
            cas=self.trusted(),
            cluster=identity.cluster,
            user=identity.name,
            expires=identity.expires,
            logins=identity.principals,
            roles=identity.roles,
        )

    def host(
        self,
        host_id: str,
        *,
        roles: Sequence[str],
        principals: Sequence[str],
        names: Sequence[str],
        public_key: str,
        ssh_public_key: str,
        ttl: timedelta = HOST_TTL,
    ) -> HostCertificates:
        """A host's certificates; raises Invalid if the keys differ.

        Args:
            principals: names by which SSH finds it. names: those of its TLS certificate, empty for agents, which are
                never TLS servers: no agent can stand in for the front door.
        """
        _require_same(public_key, ssh_public_key)
        found_by = dict.fromkeys((*principals, *(name for name in names if "*" not in name)))
        identity = Identity(
            Kind.HOST,
            host_id,
            self._authorities.cluster,
            roles=tuple(roles),
            principals=tuple(found_by),
            expires=self._until(ttl),
            issued=self._now(),
        )
        ca, now = self._authorities.host, self._now()
        return HostCertificates(
            certificate=certificates.issue_host(ca, public_key, identity, now, names),
            ssh_certificate=certificates.issue_host_ssh(ca, ssh_public_key, identity, now),
            cas=self.trusted(),
            cluster=identity.cluster,
            host_id=host_id,
            expires=identity.expires,
        )

    def database_server(self, hosts: Sequence[str], public_key: str, ttl: timedelta | None) -> Certificate:
        """A database server's certificate."""
        length = SERVER_TTL if ttl is None else ttl
        if length > MAX_SERVER_TTL:
            raise Invalid(f"a database server's certificate lives for up to {MAX_SERVER_TTL.days} days")
        expires = self._until(length)
        pem = certificates.issue_database_server(self._authorities.db, public_key, hosts, self._now(), expires)
        return Certificate(certificate=pem, expires=expires, cas=self.trusted())

    def database_client(self, public_key: str, user: str, database: str, expires: datetime) -> Certificate:
        """A client certificate with which an agent is a database user at the database registered under that name."""
        until = expires.replace(microsecond=0)
        ca, now = self._authorities.dbclient, self._now()
        pem = certificates.issue_database_client(ca, public_key, user, now, until, database=database)
        return Certificate(certificate=pem, expires=until, cas=self.trusted())

    def _until(self, length: timedelta) -> datetime:
        return (self._now() + length).replace(microsecond=0)  # certificates hold whole seconds


def _require_same(public_key: str, ssh_public_key: str) -> None:
    if _spki(load_key(public_key)) != _spki(load_ssh_key(ssh_public_key)):
        raise Invalid("public_key and ssh_public_key must be the same key")


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
