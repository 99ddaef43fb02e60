"""Who may reach which node or database, as the proxy beside us would decide it now, and by which rules.

Belongs here: finding the resource that `tctl route explain` names, and whose access is asked about. Does not belong
here: the decision and its steps (access.explain).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from monoport.access.decide import Action, Ssh
from monoport.access.explain import explain
from monoport.access.identity import Identity
from monoport.access.resources import Database, Lock, Node, Role, User, parse_document
from monoport.access.supposed import signed_in
from monoport.errors import Failure
from monoport.protocols import login as database_login
from monoport.protocols.description import Description
from monoport.routing.names import SSH_ALPN

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


def explained(
    aim: Aim, identity: Identity, known: Known, table: Mapping[str, Description], now: datetime
) -> list[dict[str, str]]:
    """The steps of the decision, the decision last; raises Failure."""
    found = aim.resource(known)
    steps = explain(identity, found, aim.action(found, table), known.roles, known.locks, now)
    return [{"rule": step.rule, "verdict": step.verdict, "why": step.why} for step in steps]
