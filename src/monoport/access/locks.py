"""Which lock, if any, holds for an identity and what it is about to use.

Belongs here: matching locks. Does not: ending sessions (lease.py), storing locks (auth).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from monoport.access.claims import Identity, Kind
from monoport.access.resources import Lock


def lock_for(
    identity: Identity, locks: Iterable[Lock], now: datetime, *, nodes: Collection[str] = (), login: str | None = None
) -> Lock | None:
    """Return the first lock in force that concerns the identity, or what it is about to use.

    Args:
        identity: the caller; a host is concerned by locks of its own node.
        locks: all locks, expired ones too.
        now: UTC.
        nodes: host id and hostname of the node that is used.
        login: the login that is used on it.
    """
    for lock in locks:
        if lock.in_force(now) and _old_enough(lock, identity) and _concerns(lock, identity, nodes, login):
            return lock
    return None


def _old_enough(lock: Lock, identity: Identity) -> bool:
    """Whether the identity was issued before the lock's instant; one that does not say when counts as the oldest."""
    before = lock.spec.issued_before
    return before is None or identity.issued is None or identity.issued < before


def _concerns(lock: Lock, identity: Identity, nodes: Collection[str], login: str | None) -> bool:
    target = lock.spec.target
    if identity.kind is Kind.HOST and target.node is not None:
        return target.node == identity.name or target.node in identity.principals or target.node in nodes
    return (
        (target.user is not None and identity.kind is Kind.USER and target.user in (identity.name, str(identity)))
        or (target.role is not None and target.role in identity.roles)
        or (target.node is not None and target.node in nodes)
        or (target.login is not None and target.login == login)
    )
