"""Who may call which operation: one table, and nothing that is not in it.

Belongs here: the table and its check. What users may do to resources, the rules of their roles say (`access.decide`);
which host may speak for which resource, the operations themselves check.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from monoport.access.decide import Denied, authorize_verb
from monoport.access.identity import Identity, Kind
from monoport.access.locks import lock_for
from monoport.access.resources import Lock, Role
from monoport.audit.outage import GAP
from monoport.auth.refusals import Forbidden

EVERY_HOST = frozenset({"auth", "proxy", "node", "db", "app", "kube", "admin"})
AGENTS = frozenset({"proxy", "node", "db", "app", "kube"})  # hosts that joined with a token


class Operation(StrEnum):
    """Operations that belong to a kind of caller, not to a resource."""

    STATUS = "status"
    CAS = "cas"
    AUTHENTICATE = "authenticate"
    JOIN = "join"
    REISSUE = "reissue"
    RENEW = "renew"
    HEARTBEAT = "heartbeat"
    WATCH = "watch"
    DATABASE_CLIENT = "database_client"
    EMIT = "emit"
    RECORDING = "recording"


@dataclass(frozen=True, slots=True)
class Callers:
    """System roles that may, whether users may, and whether certificates narrowed to one resource will do."""

    hosts: frozenset[str] = frozenset()
    users: bool = False
    narrowed: bool = False


CALLERS: Mapping[Operation, Callers] = {
    Operation.STATUS: Callers(EVERY_HOST, users=True, narrowed=True),
    Operation.CAS: Callers(EVERY_HOST, users=True, narrowed=True),
    Operation.AUTHENTICATE: Callers(frozenset({"proxy"})),
    Operation.JOIN: Callers(frozenset({"proxy", "auth"})),  # whoever serves the bootstrap name
    Operation.REISSUE: Callers(users=True, narrowed=True),
    Operation.RENEW: Callers(AGENTS),
    Operation.HEARTBEAT: Callers(frozenset({"node", "db"})),
    Operation.WATCH: Callers(EVERY_HOST),
    Operation.DATABASE_CLIENT: Callers(frozenset({"db"})),
    Operation.EMIT: Callers(AGENTS),
    Operation.RECORDING: Callers(frozenset({"node"})),
}

# What hosts may read without a rule. Agents decide by themselves, so they need roles and locks; only proxies look for
# the way to a resource. Everything else about resources takes a user's rule or the system role admin.
HOST_READS: Mapping[str, frozenset[str]] = {
    "role": EVERY_HOST,
    "lock": EVERY_HOST,
    "node": frozenset({"proxy", "auth"}),
    "db": frozenset({"proxy", "auth"}),
}


# What hosts may put into the audit log: names of types, and families that end with a dot. A host that could emit
# other types could invent logins, or sessions of a kind it never sees.
EMITTED: Mapping[str, tuple[str, ...]] = {
    "node": ("session.", "sftp.", "scp.", "port.", "agent.", "x11."),
    "db": ("db.",),
    "proxy": ("session.deny", "db.session.start", "db.session.deny", "db.session.end", "db.cancel", "db.cancel.deny"),
}


def may_emit(caller: Identity, event_type: str) -> bool:
    """Whether a host with these system roles emits events of this type."""
    known = [one for role in caller.roles for one in EMITTED.get(role, ())]
    if event_type == GAP:
        return not AGENTS.isdisjoint(caller.roles)
    return any(event_type.startswith(one) if one.endswith(".") else event_type == one for one in known)


def require_current(caller: Identity, locks: Iterable[Lock], now: datetime) -> None:
    """Raises Forbidden if the caller's certificate has expired or the caller is locked."""
    if now >= caller.expires:
        raise Forbidden(f"the certificate of {caller} has expired", "certificate expired")
    lock = lock_for(caller, _locks_for(caller, locks), now)
    if lock is not None:
        who = f"the certificate of {caller}, who was changed since, is locked: sign in again with tsh login"
        raise Forbidden(who if lock.passes else f"{caller} is locked", f"lock {lock.name}")


def require(caller: Identity, operation: Operation, locks: Iterable[Lock], now: datetime) -> None:
    """Raises Forbidden unless this kind of caller may call the operation."""
    require_current(caller, locks, now)
    callers = CALLERS[operation]
    if (caller.destination is not None or caller.usage) and not callers.narrowed:
        raise Forbidden(f"access denied: cannot {operation}", "certificate: narrowed to one use")
    allowed = callers.users if caller.kind is Kind.USER else not callers.hosts.isdisjoint(caller.roles)
    if not allowed:
        raise Forbidden(f"access denied: cannot {operation}", f"{caller.kind} with roles {', '.join(caller.roles)}")


def require_verb(  # noqa: PLR0917 - the order of access.decide: who, what, how, by which rules, when
    caller: Identity, kind: str, verb: str, roles: Mapping[str, Role], locks: Iterable[Lock], now: datetime
) -> None:
    """Raises Forbidden unless a rule of the caller's roles allows the verb, or it is a host's own way to read."""
    require_current(caller, locks, now)
    if (
        caller.kind is Kind.HOST
        and verb in {"read", "list"}
        and not HOST_READS.get(kind, frozenset()).isdisjoint(caller.roles)
    ):
        return
    decision = authorize_verb(caller, kind, verb, roles, locks=_locks_for(caller, locks), now=now)
    if isinstance(decision, Denied):
        raise Forbidden(decision.reason, decision.rule, kind=kind, verb=verb)


def _locks_for(caller: Identity, locks: Iterable[Lock]) -> Iterable[Lock]:
    # The administrator beside the auth service must be able to lift any lock, such as one on a role called "admin".
    return () if caller.kind is Kind.HOST and "admin" in caller.roles else locks
