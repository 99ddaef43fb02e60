"""(identity, resource, action, roles, locks) -> Permit | Denied. The only place that makes a permit.

Belongs here: the order of checks, how roles combine, and which rule of which role decided.
Does not: how one role's conditions match (roles.py), ending what was permitted (lease.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Never, final

from monoport.access.claims import Destination, Identity, Kind
from monoport.access.findings import look, why_none
from monoport.access.forwarding import Forwarding, Verdict, verdicts
from monoport.access.locks import lock_for
from monoport.access.question import Action, DatabaseLogin, Question, Ssh, ask_database, ask_node
from monoport.access.resources import Database, Lock, Node, Recording, Role
from monoport.access.roles import any_name_left, rule_matches

__all__ = [
    "UNACCEPTED",
    "Action",
    "Allowed",
    "DatabaseLogin",
    "Denied",
    "Options",
    "Permit",
    "Ssh",
    "authorize",
    "authorize_verb",
    "sight",
    "visible",
]


UNACCEPTED: Final = "certificate: not accepted"  # the rule where nobody is known whose roles could be asked


@dataclass(frozen=True, slots=True)
class Options:
    """What a permitted session may do besides, and what is kept of it, by the roles that allow this very access.

    Recording is as strict as the strictest of them says, which is `recorded_by`; the ttl is the shortest.
    """

    forwarding: Mapping[Forwarding, Verdict]
    record_session: Recording
    recorded_by: str
    record_input: bool
    max_session_ttl: timedelta


class _Seal:
    """Type of the one value without which no permit is made; it never leaves this module."""


_SEAL: Final = _Seal()


@final
@dataclass(frozen=True, slots=True)
class Permit:
    """Proof that an identity may do one thing to one resource until an instant; only this module makes one.

    Args:
        identity: who.
        kind: "node" or "db".
        name: the resource's name; a node's is its host id.
        host_id: the host whose agent serves it.
        action: what was asked.
        options: what the session may do besides.
        until: UTC instant at which the session ends: the certificate's end, or the roles' longest session.
        rule: which rule of which role allowed it, for audit.

    Raises:
        TypeError: when anything else tries to make, copy or store one.
    """

    identity: Identity
    kind: str
    name: str
    host_id: str
    action: Action
    options: Options
    until: datetime
    rule: str
    seal: InitVar[_Seal]

    def __post_init__(self, seal: _Seal) -> None:
        if seal is not _SEAL:
            raise TypeError("only access.decide makes a Permit")

    def __reduce_ex__(self, protocol: object) -> Never:
        raise TypeError("a Permit is neither copied nor stored: ask again")


@dataclass(frozen=True, slots=True)
class Denied:
    """A refusal: `reason` is for the client and says only what was refused, `rule` for audit and explanations."""

    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """An API verb, or the sight of a resource, is allowed; `rule` says by which rule of which role."""

    rule: str


def authorize(  # noqa: PLR0917  the order of its name: who, what, how, by which rules, when
    identity: Identity,
    resource: Node | Database,
    action: Action,
    roles: Mapping[str, Role],
    locks: Iterable[Lock],
    now: datetime,
) -> Permit | Denied:
    """Decide whether `identity` may do `action` to `resource`: deny wins, and nothing allowed means denied.

    Args:
        identity: read from a verified certificate.
        resource: what it wants to reach.
        action: an Ssh for nodes, a DatabaseLogin for databases.
        roles: every role there is, by name; a role that is held but missing denies, as its denials are not known.
        locks: every lock there is.
        now: UTC.

    Raises:
        TypeError: if the action is not one on such a resource.
    """
    locks = tuple(locks)
    if isinstance(resource, Node) and isinstance(action, Ssh):
        if action.login is None:
            answer = _decide_any_login(identity, resource, roles, locks, now)
        else:
            answer = _decide(identity, ask_node(resource, action.login), roles, locks, now)
    elif isinstance(resource, Database) and isinstance(action, DatabaseLogin):
        answer = _decide(identity, ask_database(resource, action), roles, locks, now)
    else:
        raise TypeError(f"{type(action).__name__} is not an action on a {type(resource).__name__}")
    if isinstance(answer, Denied):
        return answer
    options = _options(answer.roles)
    return Permit(
        identity=identity,
        kind=resource.kind,
        name=resource.name,
        host_id=resource.spec.host_id,
        action=action,
        options=options,
        until=min(identity.expires, now + options.max_session_ttl),
        rule=answer.rule,
        seal=_SEAL,
    )


def visible(
    identity: Identity, resource: Node | Database, roles: Mapping[str, Role], locks: Iterable[Lock], now: datetime
) -> bool:
    """Tell whether a listing may show `resource`.

    A node is shown if its labels are allowed and not denied, whatever the login. Of a database, besides, some database
    user must be left: one that a role which allows its labels names, and no role denies.
    """
    return isinstance(sight(identity, resource, roles, locks, now), Allowed)


def sight(
    identity: Identity, resource: Node | Database, roles: Mapping[str, Role], locks: Iterable[Lock], now: datetime
) -> Allowed | Denied:
    """Decide what `visible` tells, and by which rule."""
    only = identity.destination.user if identity.destination is not None else ""
    if isinstance(resource, Node):
        question = ask_node(resource, None)
    else:
        question = ask_database(resource, DatabaseLogin(only, None) if only else None)
    answer = _decide(identity, question, roles, tuple(locks), now)
    if isinstance(answer, Denied):
        return answer
    if isinstance(resource, Database) and not only:
        allow = (pattern for role in answer.roles for pattern in role.spec.allow.db_users)
        deny = (pattern for name in identity.roles for pattern in roles[name].spec.deny.db_users)
        if not any_name_left(allow, deny, identity.traits):
            return Denied(question.reason, "no role: allow.db_users has a name that no deny.db_users has")
    return Allowed(answer.rule)


def authorize_verb(  # noqa: PLR0917  in the order of authorize
    identity: Identity,
    kind: str,
    verb: str,
    roles: Mapping[str, Role],
    locks: Iterable[Lock] = (),
    now: datetime | None = None,
) -> Allowed | Denied:
    """Decide whether `identity` may do `verb` to resources of `kind` at the auth service.

    Args:
        identity: read from a verified certificate; of hosts only the system role admin has rules, and it has all.
        kind: one of `resources.API_KINDS`.
        verb: one of `resources.VERBS`.
        roles: every role there is, by name.
        locks: every lock there is.
        now: UTC; the system clock when omitted.
    """
    reason = f"cannot {verb} {kind}: access denied"
    rule = _refused_verbs(identity, tuple(locks), now or datetime.now(UTC))
    if rule is not None:
        return Denied(reason, rule)
    if identity.kind is Kind.HOST:
        return Allowed("system role admin")
    held = _held(identity, roles)
    if isinstance(held, str):
        return Denied(reason, held)
    for role in held:
        if rule_matches(role.spec.deny.rules, kind, verb):
            return Denied(reason, f"role {role.name}: deny.rules has {verb} of {kind}")
    for role in held:
        if rule_matches(role.spec.allow.rules, kind, verb):
            return Allowed(f"role {role.name}: allow.rules has {verb} of {kind}")
    return Denied(reason, f"no role has {verb} of {kind} in allow.rules")


@dataclass(frozen=True, slots=True)
class _Grant:
    """Roles that allow what was asked, and the rule of the first of them."""

    roles: tuple[Role, ...]
    rule: str


def _decide(
    identity: Identity, question: Question, roles: Mapping[str, Role], locks: Sequence[Lock], now: datetime
) -> _Grant | Denied:
    refused = _refused(identity, question, locks, now)
    if refused is not None:
        return refused
    held = _held(identity, roles)
    if isinstance(held, str):
        return Denied(question.reason, held)
    return _denied_by_roles(identity, question, held) or _allowed_by_roles(identity, question, held)


def _decide_any_login(
    identity: Identity, node: Node, roles: Mapping[str, Role], locks: Sequence[Lock], now: datetime
) -> _Grant | Denied:
    general = ask_node(node, None)
    refused = _refused(identity, general, locks, now)
    if refused is not None:
        return refused
    rule = "certificate: names no logins"
    for login in identity.principals:
        answer = _decide(identity, ask_node(node, login), roles, locks, now)
        if isinstance(answer, _Grant):
            return answer
        rule = answer.rule
    return Denied(general.reason, rule)


def _refused(identity: Identity, question: Question, locks: Sequence[Lock], now: datetime) -> Denied | None:
    rule = _refused_by_certificate(identity, question, now)
    if rule is not None:
        return Denied(question.reason, rule)
    if (narrower := _narrower(identity.destination, question)) is not None:
        return narrower
    lock = lock_for(identity, locks, now, nodes=question.nodes, login=question.login)
    if lock is None:
        return None
    # Who can help themselves is told how; it says nothing about what is refused.
    again = "; your rights were changed: sign in again with tsh login" if lock.passes else ""
    return Denied(question.reason + again, f"lock {lock.name}: {lock.spec.target}")


def _refused_verbs(identity: Identity, locks: Sequence[Lock], now: datetime) -> str | None:
    if now >= identity.expires:
        return "certificate: expired"
    if (lock := lock_for(identity, locks, now)) is not None:
        return f"lock {lock.name}: {lock.spec.target}"
    if identity.destination is not None or identity.usage:
        return "certificate: narrowed to another use"
    if identity.kind is Kind.HOST and "admin" not in identity.roles:
        return "certificate: a host's, not an administrator's"
    return None


def _refused_by_certificate(identity: Identity, question: Question, now: datetime) -> str | None:
    if identity.kind is not Kind.USER:
        return "certificate: a host's, only users reach resources"
    if now >= identity.expires:
        return "certificate: expired"
    if identity.usage and question.usage not in identity.usage:
        return f"certificate: narrowed to {', '.join(identity.usage)}"
    if (route := identity.destination) is not None and (route.kind, route.name) != (question.kind, question.name):
        return f"certificate: narrowed to {route.kind} {route.name}"
    if question.login is not None and question.login not in identity.principals:
        return f"certificate: login {question.login} is not among its principals"
    return None


def _narrower(route: Destination | None, question: Question) -> Denied | None:
    """Why a certificate for this database is not for this login; its owner may know what it is for."""
    if route is None:
        return None
    for what, only, wanted in (
        ("user", route.user, question.user),
        ("database", route.database, question.database),
    ):
        if only and wanted is not None and only != wanted:
            reason = f'{what} "{wanted}" of "{question.name}" denied: this certificate is for {what} "{only}"'
            return Denied(reason, f"certificate: narrowed to {what} {only}")
    return None


def _held(identity: Identity, roles: Mapping[str, Role]) -> tuple[Role, ...] | str:
    """Return the identity's roles, or why they do not count: a role that is not there may have denied."""
    missing = [name for name in identity.roles if name not in roles]
    if missing:
        return f"role {missing[0]}: does not exist"
    return tuple(roles[name] for name in identity.roles)


def _denied_by_roles(identity: Identity, question: Question, held: Sequence[Role]) -> Denied | None:
    for role in held:
        for finding in look(role, "deny", question, identity.traits):
            if finding.matched is not None:
                return Denied(finding.reason, f"role {role.name}: {finding.rule}")
    return None


def _allowed_by_roles(identity: Identity, question: Question, held: Sequence[Role]) -> _Grant | Denied:
    rows = [look(role, "allow", question, identity.traits) for role in held]
    reasons = (question.reason, *(check.reason for check in question.checks))
    for stage, reason in enumerate(reasons):
        if not any(all(finding.matched is not None for finding in row[: stage + 1]) for row in rows):
            return Denied(reason, why_none(rows, stage))
    granting = [row for row in rows if all(finding.matched is not None for finding in row)]
    first = granting[0]
    rule = f"role {first[0].role.name}: {' and '.join(finding.rule for finding in first)}"
    return _Grant(tuple(row[0].role for row in granting), rule)


def _options(roles: Sequence[Role]) -> Options:
    options = [role.spec.options for role in roles]
    strictest = max(roles, key=lambda role: role.spec.options.record_session.strictness)
    return Options(
        forwarding=verdicts(roles),
        record_session=strictest.spec.options.record_session,
        recorded_by=strictest.name,
        record_input=any(one.record_input for one in options),
        max_session_ttl=min(one.max_session_ttl for one in options),
    )
