"""What an identity asks for, in the terms that every kind of resource shares.

Belongs here: actions, and how each kind of resource turns one into a question. Does not: answering it (decide.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monoport.access.resources import Conditions, Database, Node


@dataclass(frozen=True, slots=True)
class Ssh:
    """Open an SSH session as `login`; None asks whether any login of the identity may reach the node."""

    login: str | None = None


@dataclass(frozen=True, slots=True)
class DatabaseLogin:
    """Open a database session as `user` on `database`; an empty database is matched by '*' alone.

    None is no database yet, for protocols whose sessions may begin so: every one that is chosen later is a question of
    its own.

    `features` are what it is beyond an ordinary session, such as "replication"; each must be allowed by name.
    """

    user: str
    database: str | None
    features: tuple[str, ...] = ()


Action = Ssh | DatabaseLogin


@dataclass(frozen=True, slots=True)
class Check:
    """One list of a role's conditions that must hold the wanted value."""

    field: str
    patterns: Callable[[Conditions], tuple[str, ...]]
    wanted: str
    reason: str


@dataclass(frozen=True, slots=True)
class Question:
    """May this be done?

    Args:
        kind: of the resource, and of the destination that a narrowed certificate must name.
        usage: which of the certificate's usages it takes.
        name: of the resource.
        nodes: host id and names of the node, for locks.
        labels: of the resource.
        selector_field: the condition that selects by label.
        selector: reads that condition.
        checks: lists that must hold a value, in the order in which a refusal names them.
        login: SSH login, which the certificate must have among its principals.
        user: database user, for a narrowed certificate.
        database: database name, likewise.
        reason: what a refusal of the whole says to the client.
    """

    kind: str
    usage: str
    name: str
    nodes: tuple[str, ...]
    labels: Mapping[str, str]
    selector_field: str
    selector: Callable[[Conditions], Mapping[str, tuple[str, ...]]]
    checks: tuple[Check, ...]
    reason: str
    login: str | None = None
    user: str | None = None
    database: str | None = None


def ask_node(node: Node, login: str | None) -> Question:
    """Return the question whether `node` may be used, as `login` or, if None, merely seen."""
    name = node.spec.hostname
    reason = f'access to node "{name}" denied'
    checks: tuple[Check, ...] = ()
    if login is not None:
        reason = f'login "{login}" to node "{name}" denied'
        checks = (Check("logins", lambda conditions: conditions.logins, login, reason),)
    return Question(
        kind="node",
        usage="ssh",
        name=node.name,
        nodes=(node.spec.host_id, name),
        labels=node.metadata.labels,
        selector_field="node_labels",
        selector=lambda conditions: conditions.node_labels,
        checks=checks,
        reason=reason,
        login=login,
    )


def ask_database(database: Database, action: DatabaseLogin | None) -> Question:
    """Return the question whether `database` may be used so or, if None, merely seen."""
    checks: tuple[Check, ...] = ()
    if action is not None:
        place = f'"{database.name}"'
        checks = (
            Check(
                "db_users",
                lambda conditions: conditions.db_users,
                action.user,
                f'access to {place} as database user "{action.user}" denied',
            ),
            *(
                Check(
                    "db_names",
                    lambda conditions: conditions.db_names,
                    one,
                    f'access to database "{one}" on {place} denied',
                )
                for one in ((action.database,) if action.database is not None else ())
            ),
            *(
                Check("db_features", lambda conditions: conditions.db_features, one, f"{one} on {place} denied")
                for one in action.features
            ),
        )
    return Question(
        kind="db",
        usage="db",
        name=database.name,
        nodes=(database.spec.host_id,),
        labels=database.metadata.labels,
        selector_field="db_labels",
        selector=lambda conditions: conditions.db_labels,
        checks=checks,
        reason=f'access to "{database.name}" denied',
        user=action.user if action else None,
        database=action.database if action else None,
    )
