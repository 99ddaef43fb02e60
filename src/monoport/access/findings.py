"""What looking at one side of one role found, for a decision and for explaining it: both go by the same values.

Belongs here: findings and their words. Does not: what follows from them (decide.py), matching itself (roles.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from monoport.access.question import Question
from monoport.access.resources import Role
from monoport.access.roles import expand, matching_labels, matching_name, shown_labels, shown_names

Side = Literal["allow", "deny"]

MAX_TOLD: Final = 1024  # characters of what was looked at in one refusal: an audit event is read by people


@dataclass(frozen=True, slots=True)
class Finding:
    """One list of one side of one role, held against what is wanted.

    Args:
        role: its name. side, field: which of its lists.
        wanted: the login, user or name, or the resource's labels as text.
        matched: the entry that matches, None if none does.
        holds: what the list holds, with templates expanded; asked for only to explain.
        reason: for the client, if this decides against it.
    """

    role: Role
    side: Side
    field: str
    wanted: str
    matched: str | None
    reason: str
    traits: Mapping[str, Sequence[str]]

    @property
    def rule(self) -> str:
        """The words for audit and explanations: "deny.logins has root"."""
        name = f"{self.side}.{self.field}"
        if self.matched is None:
            return f"{name} has no {self.wanted}"
        if self.matched == self.wanted or self.field.endswith("_labels"):
            return f"{name} has {self.matched}"
        values = expand(self.matched, self.traits)
        if values is not None and self.wanted not in values:
            return f"{name} has {self.matched}, which {'is any' if values else 'has no value'}: that denies everything"
        return f"{name} has {self.matched} for {self.wanted}"

    @property
    def holds(self) -> str:
        """What the list holds, templates with their values."""
        conditions = self.role.spec.allow if self.side == "allow" else self.role.spec.deny
        found = getattr(conditions, self.field)
        return shown_labels(found, self.traits) if isinstance(found, Mapping) else shown_names(found, self.traits)


def look(role: Role, side: Side, question: Question, traits: Mapping[str, Sequence[str]]) -> tuple[Finding, ...]:
    """Return one finding for the labels and one for each list that the question is about, in its order."""
    conditions, deny = (role.spec.allow, False) if side == "allow" else (role.spec.deny, True)
    labels = ",".join(f"{key}={value}" for key, value in sorted(question.labels.items())) or "no labels"
    selected = matching_labels(question.selector(conditions), question.labels, traits, deny=deny)
    found = [Finding(role, side, question.selector_field, labels, selected, question.reason, traits)]
    for check in question.checks:
        matched = matching_name(check.patterns(conditions), check.wanted, traits, deny=deny)
        found.append(Finding(role, side, check.field, check.wanted, matched, check.reason, traits))
    return tuple(found)


def why_none(rows: Sequence[Sequence[Finding]], stage: int) -> str:
    """Say that no role allows what was wanted, and what was looked at.

    Args:
        rows: the findings of each role's allow side.
        stage: the index of the list at which no role was left.
    """
    if not rows:
        return "no role allows it: the certificate names no roles"
    last = rows[0][stage]
    looked = []
    for row in rows:
        failed = next(finding for finding in row if finding.matched is None)
        looked.append(f"role {failed.role.name}: allow.{failed.field} has {failed.holds}")
    text = f"no role allows {last.wanted} by allow.{last.field}; looked at {'; '.join(looked)}"
    return text if len(text) <= MAX_TOLD else text[: MAX_TOLD - 1] + "…"
