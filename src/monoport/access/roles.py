"""Role evaluation: which labels, logins, users and names a role's conditions match.

Belongs here: matching and template expansion. Does not: combining roles into a decision (decide.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from monoport.access.resources import TEMPLATE, Role, Rule

ANY: Final = "*"

Traits = Mapping[str, Sequence[str]]


def labels_match(selector: Mapping[str, Sequence[str]], labels: Mapping[str, str]) -> bool:
    """Tell whether every selected label is there with one of its values; an empty selector matches nothing."""
    return bool(selector) and all(
        key == ANY or (key in labels and (ANY in values or labels[key] in values)) for key, values in selector.items()
    )


def expand(patterns: Iterable[str], traits: Traits) -> Iterator[str]:
    """Yield `patterns` with each template replaced by the values of its trait, none if there are none."""
    for pattern in patterns:
        template = TEMPLATE.fullmatch(pattern)
        if template is None:
            yield pattern
        else:
            yield from traits.get(template[1], ())


def names_match(patterns: Iterable[str], name: str, traits: Traits) -> bool:
    """Tell whether `name` is among `patterns` exactly, or they hold '*'."""
    return any(one in (ANY, name) for one in expand(patterns, traits))


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
    own = tuple(traits.get("logins", ()))
    allowed = {login for role in roles for one in expand(role.spec.allow.logins, traits)
               for login in (own if one == ANY else (one,))}  # fmt: skip
    return tuple(
        sorted(
            login
            for login in allowed
            if login != ANY and not any(names_match(role.spec.deny.logins, login, traits) for role in roles)
        )
    )


def session_ttl(roles: Iterable[Role], default: timedelta) -> timedelta:
    """Return how long a certificate for these roles may live: the shortest that any of them sets."""
    return min((role.spec.options.max_session_ttl for role in roles), default=default)
