"""Role evaluation: which labels, logins, users and names a role's conditions match.

Belongs here: matching and template expansion. Does not: combining roles into a decision (decide.py).

'*' matches everything only where a role spells it. What a trait brings is a value, never a wildcard or a template
again: traits come from people and, one day, from elsewhere, and whoever can set one must not thereby reach everything.
In `deny` doubt goes the other way: a template that has no value, or the value '*', denies everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from monoport.access.fields import TEMPLATE
from monoport.access.resources import Role, Rule

ANY: Final = "*"

Traits = Mapping[str, Sequence[str]]


def expand(pattern: str, traits: Traits) -> tuple[str, ...] | None:
    """Return the values that a template stands for, none if its trait is missing; None for what is no template."""
    template = TEMPLATE.fullmatch(pattern)
    if template is None:
        return None
    values = traits.get(template["trait"], ())
    return tuple(f"{template['before']}{value}{template['after']}" for value in values)


def matching_name(patterns: Iterable[str], name: str, traits: Traits, *, deny: bool = False) -> str | None:
    """Return the first of `patterns` that matches `name`: the name itself, '*', or a template with such a value.

    Args:
        patterns: as a role lists them.
        name: what is wanted.
        traits: of the identity, for templates.
        deny: whether the patterns deny: templates without a value, and those that bring '*', then match everything.
    """
    for pattern in patterns:
        values = expand(pattern, traits)
        if values is None:
            if pattern in (ANY, name):
                return pattern
        elif name in values or (deny and _unsure(pattern, traits)):
            return pattern
    return None


def _unsure(pattern: str, traits: Traits) -> bool:
    template = TEMPLATE.fullmatch(pattern)
    assert template is not None
    values = traits.get(template["trait"], ())
    return not values or ANY in values


def any_name_left(allow: Iterable[str], deny: Iterable[str], traits: Traits) -> bool:
    """Tell whether there is a name that `allow` matches and `deny` does not, by the rules of matching_name.

    Args:
        allow: as roles list them. deny: likewise, what is taken away.
        traits: of the identity, for templates.
    """
    allow, deny = tuple(allow), tuple(deny)
    if any(_denies_every(pattern, traits) for pattern in deny):
        return False
    if ANY in allow:
        return True  # what is left of deny are single names, and there are always others
    names = itertools.chain.from_iterable(_values(pattern, traits) for pattern in allow)
    return any(matching_name(deny, name, traits, deny=True) is None for name in names)


def _values(pattern: str, traits: Traits) -> tuple[str, ...]:
    values = expand(pattern, traits)
    return (pattern,) if values is None else values


def _denies_every(pattern: str, traits: Traits) -> bool:
    return pattern == ANY if expand(pattern, traits) is None else _unsure(pattern, traits)


def matching_labels(
    selector: Mapping[str, Sequence[str]], labels: Mapping[str, str], traits: Traits, *, deny: bool = False
) -> str | None:
    """Return how `selector` matches: every selected label is there with one of its values; an empty one never does.

    Returns:
        The selector as text, such as "env=dev,team={{external.team}}", or None.
    """
    matched: list[str] = []
    for key, values in selector.items():
        if key == ANY:
            matched.append(ANY)
            continue
        found = matching_name(values, labels[key], traits, deny=deny) if key in labels else None
        if found is None:
            return None
        matched.append(f"{key}={found}")
    return ",".join(matched) or None


def shown_names(patterns: Iterable[str], traits: Traits) -> str:
    """Return a role's list as text, each template with what it stands for: "root {{internal.logins}}=alice"."""
    return " ".join(_shown(one, traits) for one in patterns) or "nothing"


def shown_labels(selector: Mapping[str, Sequence[str]], traits: Traits) -> str:
    """Return a role's selector as text: "env=dev|test team={{external.team}}=red"."""
    parts = (ANY if key == ANY else f"{key}={'|'.join(_shown(one, traits) for one in values)}"
             for key, values in selector.items())  # fmt: skip
    return " ".join(parts) or "nothing"


def _shown(pattern: str, traits: Traits) -> str:
    values = expand(pattern, traits)
    return pattern if values is None else f"{pattern}={','.join(values) or 'nothing'}"


def rule_matches(rules: Iterable[Rule], kind: str, verb: str) -> bool:
    """Tell whether any rule names `kind` and `verb`."""
    return any(
        (ANY in rule.resources or kind in rule.resources) and (ANY in rule.verbs or verb in rule.verbs)
        for rule in rules
    )


def logins_for(roles: Iterable[Role], traits: Traits) -> tuple[str, ...]:
    """Return the logins that a certificate for these roles may name, sorted.

    '*' stands for the user's own `logins` trait: a certificate cannot list every login there is.
    """
    roles = tuple(roles)
    allowed: set[str] = set()
    for role in roles:
        for pattern in role.spec.allow.logins:
            values = expand(pattern, traits)
            if values is None:
                values = tuple(traits.get("logins", ())) if pattern == ANY else (pattern,)
            allowed.update(values)
    return tuple(
        sorted(
            login
            for login in allowed
            if login != ANY
            and all(matching_name(one.spec.deny.logins, login, traits, deny=True) is None for one in roles)
        )
    )


def session_ttl(roles: Iterable[Role], default: timedelta) -> timedelta:
    """Return how long a certificate for these roles may live: the shortest that any of them sets."""
    return min((role.spec.options.max_session_ttl for role in roles), default=default)
