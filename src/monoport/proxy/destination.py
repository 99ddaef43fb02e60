"""Which database a login is for, and as whom: what certificate, SNI and start-up message agree on.

Belongs here: that agreement and the refusal where there is none. Whether the identity may go there, `access` decides.
"""

from monoport.access.claims import Destination, Identity
from monoport.access.decide import DatabaseLogin
from monoport.protocols.description import Description
from monoport.wire.front import Login, Why


class Refused(Exception):
    """The session does not come about: `why` and `reason` are for the client, `rule` for log and audit."""

    def __init__(self, why: Why, reason: str, rule: str = "") -> None:
        super().__init__(reason)
        self.why = why
        self.rule = rule or why.value


def wanted(identity: Identity, target: str | None, protocol: Description, login: Login) -> tuple[str, DatabaseLogin]:
    """Return the database that certificate, SNI and start-up message agree on, and the login there. Raises Refused."""
    destination = narrowed_to(identity)
    if identity.destination is not None and destination is None:
        raise Refused(Why.DENIED, "this certificate is not for databases", "certificate's destination")
    if destination is None:
        if not target:
            raise Refused(Why.UNKNOWN, "this certificate names no database: use tsh db login", "no destination")
        return target, _action(target, protocol, login, login.user, login.database)
    if target and target != destination.name:
        reason = f'this certificate is for database "{destination.name}", not for "{target}"'
        raise Refused(Why.DENIED, reason, "certificate's destination")
    if destination.protocol not in ("", protocol.name):
        reason = f'database "{destination.name}" does not speak {protocol.title}'
        raise Refused(Why.DENIED, reason, "certificate's destination")
    for what, allowed, asked in (
        ("user", destination.user, login.user),
        ("database", destination.database, login.database),
    ):
        if allowed and asked and allowed != asked:
            reason = f'{what} "{asked}" of "{destination.name}" denied: this certificate is for {what} "{allowed}"'
            raise Refused(Why.DENIED, reason, "certificate's destination")
    user, database = login.user or destination.user, login.database or destination.database
    return destination.name, _action(destination.name, protocol, login, user, database)


def _action(name: str, protocol: Description, login: Login, user: str, database: str) -> DatabaseLogin:
    if protocol.needs_user and not user:
        reason = f"neither certificate nor start-up message names a database user: tsh db login {name} --db-user=USER"
        raise Refused(Why.DENIED, reason, "no user")
    if protocol.needs_database and not database:
        raise Refused(Why.DENIED, "neither certificate nor start-up message names a database", "no database")
    return DatabaseLogin(user, database if database or protocol.needs_database else None, login.features)


def asked(identity: Identity, target: str | None, login: Login) -> dict[str, str]:
    """Fields of the audit log: the login that was asked for, and where it names nothing the certificate's."""
    allowed = narrowed_to(identity)
    name, user, database = (allowed.name, allowed.user, allowed.database) if allowed is not None else ("", "", "")
    return {"database": target or name, "db_user": login.user or user, "db_name": login.database or database}


def narrowed_to(identity: Identity | None) -> Destination | None:
    """The database that a certificate was narrowed to, if it was to one."""
    if identity is None or identity.destination is None or identity.destination.kind != "db":
        return None
    return identity.destination
