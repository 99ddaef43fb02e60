"""A user who is not signed in, as a login at this moment would make them; and what a change of a user takes away.

Belongs here: both questions, as functions of documents. Does not: signing (auth.issue), storing, ending sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from monoport.access.claims import Identity, Kind
from monoport.access.fields import TEMPLATE
from monoport.access.forwarding import Forwarding
from monoport.access.resources import Conditions, Role, User
from monoport.access.roles import logins_for, session_ttl

USER_TTL: Final = timedelta(hours=12)  # a working day (design section 7); roles may set another


def signed_in(  # noqa: PLR0917  the user, and what a login adds
    user: User,
    cluster: str,
    roles: Mapping[str, Role],
    now: datetime,
    ttl: timedelta | None = None,
    login_ip: str = "",
) -> Identity:
    """Return the identity that a login at `now` would give.

    Args:
        user: as stored.
        cluster: whose user it is.
        roles: every role there is; one that the user holds and that is missing then denies everything.
        now: UTC.
        ttl: wanted length; roles set the longest.
        login_ip: where the login comes from, or empty.
    """
    known = [roles[name] for name in user.spec.roles if name in roles]
    longest = session_ttl(known, USER_TTL)
    return Identity(
        Kind.USER,
        user.name,
        cluster,
        roles=user.spec.roles,
        traits=user.spec.traits,
        principals=logins_for(known, user.spec.traits),
        expires=(now + (longest if ttl is None else min(ttl, longest))).replace(microsecond=0),
        login_ip=login_ip,
        issued=now,
    )


def restricts(old: User, new: User, roles: Mapping[str, Role]) -> bool:
    """Tell whether a change of a user may take something away from certificates that were issued before it.

    They go on saying what they say. Nothing is taken away by what only adds: a role that denies nothing and shortens
    nothing, and values of traits by which no role that the user holds denies.

    Args:
        old: before the change. new: after it. roles: every role there is.
    """
    before, after = set(old.spec.roles), set(new.spec.roles)
    if not before <= after:
        return True
    if any(name not in roles or _narrows(roles[name], old, roles) for name in after - before):
        return True
    denied_by = {trait for name in after if name in roles for trait in _named(roles[name].spec.deny)}
    for trait in {*old.spec.traits, *new.spec.traits}:
        had, has = set(old.spec.traits.get(trait, ())), set(new.spec.traits.get(trait, ()))
        if not had <= has or (had != has and trait in denied_by):
            return True
    return False


def _narrows(role: Role, old: User, roles: Mapping[str, Role]) -> bool:
    options = role.spec.options
    held = [roles[name].spec.options for name in old.spec.roles if name in roles]
    return (
        role.spec.deny != Conditions()
        or options.max_session_ttl < min((one.max_session_ttl for one in held), default=USER_TTL)
        or any(getattr(options, what) is False for what in Forwarding)
        or options.record_session.strictness > max((one.record_session.strictness for one in held), default=0)
        or (options.record_input and not any(one.record_input for one in held))
    )


def _named(conditions: Conditions) -> Iterable[str]:
    """The traits that the templates of one side name."""
    for _, value in conditions:
        lists = value.values() if isinstance(value, Mapping) else [value]
        for patterns in lists:
            for pattern in patterns:
                template = TEMPLATE.fullmatch(pattern) if isinstance(pattern, str) else None
                if template is not None:
                    yield template["trait"]
