"""Why an identity may, or may not, do something to a resource: every rule that was looked at, and the decision.

Belongs here: the steps of an explanation, found by the very functions that decide. Does not: showing them (cli).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from monoport.access.claims import Identity
from monoport.access.decide import Action, DatabaseLogin, Denied, Permit, Ssh, authorize
from monoport.access.findings import Finding, Side, look
from monoport.access.locks import lock_for
from monoport.access.question import Question, ask_database, ask_node
from monoport.access.resources import Database, Lock, Node, Role


@dataclass(frozen=True, slots=True)
class Step:
    """One thing looked at: what it is, what it says, and why."""

    rule: str
    verdict: str
    why: str


def explain(  # noqa: PLR0917  in the order of authorize
    identity: Identity,
    resource: Node | Database,
    action: Action,
    roles: Mapping[str, Role],
    locks: Iterable[Lock],
    now: datetime,
) -> tuple[Step, ...]:
    """Return the steps of the decision that `authorize` makes of the same arguments, the decision last.

    Raises:
        TypeError: if the action is not one on such a resource.
    """
    locks = tuple(locks)
    decision = authorize(identity, resource, action, roles, locks, now)
    question = _question(resource, action)
    steps = [_locked(identity, question, locks, now)]
    sides: tuple[Side, ...] = ("deny", "allow")
    for side in sides:
        for name in identity.roles:
            if name not in roles:
                steps.append(Step(f"role {name}", "denies", "it does not exist, and nobody knows what it denied"))
                continue
            steps += [_step(finding) for finding in look(roles[name], side, question, identity.traits)]
    match decision:
        case Permit():
            steps.append(Step("decision", "allowed", f"{decision.rule}; until {decision.until:%Y-%m-%d %H:%M:%S} UTC"))
        case Denied():
            steps.append(Step("decision", "denied", decision.rule))
        case unknown:
            assert_never(unknown)
    return tuple(steps)


def _question(resource: Node | Database, action: Action) -> Question:
    if isinstance(resource, Node):
        return ask_node(resource, action.login if isinstance(action, Ssh) else None)
    return ask_database(resource, action if isinstance(action, DatabaseLogin) else None)


def _locked(identity: Identity, question: Question, locks: tuple[Lock, ...], now: datetime) -> Step:
    lock = lock_for(identity, locks, now, nodes=question.nodes, login=question.login)
    if lock is None:
        return Step("locks", "no match", f"none of {len(locks)} is for {identity} or what it would use")
    return Step(f"lock {lock.name}", "denies", str(lock.spec.target))


def _step(finding: Finding) -> Step:
    rule = f"role {finding.role.name}: {finding.side}.{finding.field}"
    if finding.matched is None:
        return Step(rule, "no match", f"it has {finding.holds}; wanted: {finding.wanted}")
    verdict = "denies" if finding.side == "deny" else "allows"
    return Step(rule, verdict, f"{finding.rule.partition(' ')[2]}; wanted: {finding.wanted}")
