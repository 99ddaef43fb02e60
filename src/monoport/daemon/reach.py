"""Who may reach which node or database, as a proxy would decide it now, and by which rules.

Belongs here: finding the resource that `tctl route explain` names, and whose access is asked about, by what the proxy
beside us knows or, where none is, the auth service. Does not belong here: the decision and its steps (access.explain).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol, TypeVar

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field

from monoport.access.decide import Action, Ssh
from monoport.access.explain import explain
from monoport.access.identity import ClusterCas, Identity, from_x509
from monoport.access.resources import Database, Lock, Node, Role, User, parse_document
from monoport.access.supposed import signed_in
from monoport.auth.client import AuthClient
from monoport.errors import Failure
from monoport.protocols import login as database_login
from monoport.protocols.description import Description
from monoport.routing.names import SSH_ALPN

Kind = TypeVar("Kind", Role, Lock, Node, Database)
Name = Annotated[str, Field(max_length=255)]


class Known(Protocol):
    """What a proxy knows of its cluster."""

    @property
    def roles(self) -> Mapping[str, Role]: ...

    @property
    def locks(self) -> Iterable[Lock]: ...

    def nodes(self) -> list[Node]: ...

    def databases(self) -> list[Database]: ...


class Aim(BaseModel):
    """A node, as a login or any, or a database as a database user, in one of its databases or in none yet."""

    model_config = ConfigDict(extra="forbid")

    node: Name = ""
    login: Name = ""
    db: Name = ""
    db_user: Name = ""
    db_name: Name = ""

    def resource(self, known: Known) -> Node | Database:
        """The first resource of that name; raises Failure."""
        if self.node:
            for node in known.nodes():
                if self.node in (node.name, node.spec.hostname):
                    return node
            raise Failure(f'no node "{self.node}" is there')
        for database in known.databases():
            if database.name == self.db:
                return database
        raise Failure(f'no database "{self.db}" is there')

    def action(self, found: Node | Database, table: Mapping[str, Description]) -> Action:
        """What would be done to it, asked as proxies ask it of this protocol; raises Failure where they could not."""
        if not isinstance(found, Database):
            return Ssh(self.login or None)
        protocol = self._protocol(found, table)
        if protocol.needs_user and not self.db_user:
            raise Failure(f"a session of {found.name} is a database user's: expected --db-user")
        if protocol.needs_database and not self.db_name:
            raise Failure(f"a {protocol.title} session of {found.name} names a database: expected --db-name")
        return database_login(protocol.name, self.db_user, self.db_name, known=table)

    def protocol_name(self, known: Known, table: Mapping[str, Description]) -> str:
        """The ALPN name by which our own client goes there; raises Failure."""
        found = self.resource(known)
        return self._protocol(found, table).alpn[0] if isinstance(found, Database) else SSH_ALPN[0]

    @staticmethod
    def _protocol(found: Database, table: Mapping[str, Description]) -> Description:
        if found.spec.protocol not in table:
            raise Failure(
                f"protocol {found.spec.protocol} of {found.name} is not known here: name it in teleport.protocols"
            )
        return table[found.spec.protocol]


def supposed(document: Mapping[str, Any], cluster: str, known: Known, now: datetime) -> Identity:
    """The identity that a user, given as a document, would have after a login now; raises Failure."""
    user = parse_document(document)
    if not isinstance(user, User):
        raise Failure(f"expected a user, not a {user.kind}")
    return signed_in(user, cluster, known.roles, now)


@dataclass(frozen=True, slots=True)
class Listed:
    """What the auth service knows of the cluster, which every proxy is told."""

    roles: Mapping[str, Role]
    locks: tuple[Lock, ...]
    listed_nodes: list[Node]
    listed_databases: list[Database]

    def nodes(self) -> list[Node]:
        return self.listed_nodes

    def databases(self) -> list[Database]:
        return self.listed_databases

    @classmethod
    async def of(cls, client: AuthClient) -> Listed:
        """Ask for it; raises Failure."""

        async def all_of(kind: type[Kind]) -> list[Kind]:
            return [one for one in await client.list(kind.model_fields["kind"].default) if isinstance(one, kind)]

        roles = {role.name: role for role in await all_of(Role)}
        return cls(roles, tuple(await all_of(Lock)), await all_of(Node), await all_of(Database))


def certified(pem: str, cas: ClusterCas) -> Identity:
    """The identity in a certificate, PEM; raises Failure."""
    try:
        return from_x509(x509.load_pem_x509_certificate(pem.encode()), cas)
    except ValueError as error:
        raise Failure(f"the certificate cannot be read: {error}") from error


async def explained_by_auth(
    client: AuthClient, aim: Aim, user: Mapping[str, Any] | None, pem: str, table: Mapping[str, Description]
) -> list[dict[str, str]]:
    """The same steps without a proxy: what auth service, roles and locks say of a user's document or a certificate.

    Raises:
        Failure: as `explained`, or the auth service does not answer.
    """
    known, now = await Listed.of(client), datetime.now(UTC)
    identity = certified(pem, await client.cas()) if user is None else supposed(user, client.cluster, known, now)
    return explained(aim, identity, known, table, now)


def explained(
    aim: Aim, identity: Identity, known: Known, table: Mapping[str, Description], now: datetime
) -> list[dict[str, str]]:
    """The steps of the decision, the decision last; raises Failure."""
    found = aim.resource(known)
    steps = explain(identity, found, aim.action(found, table), known.roles, known.locks, now)
    return [{"rule": step.rule, "verdict": step.verdict, "why": step.why} for step in steps]
