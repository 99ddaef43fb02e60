"""Why a connection was routed as it was: every rule of the table with its verdict, in words.

Belongs here: the walk over the same Rule objects that match searches, and the table as rows of text. Does not: a second
opinion; tests hold that the rule that won here is the rule of match's outcome.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from monoport.routing.conditions import First, Hit, Silence
from monoport.routing.outcome import Tls
from monoport.routing.rows import TLS_HANDSHAKE
from monoport.routing.rules import Go, Rank, Redirect, Refuse, Reply, Rule
from monoport.routing.table import Table
from monoport.wire import clienthello
from monoport.wire.clienthello import ClientHello, HelloError


class Mark(StrEnum):
    """How a rule fared."""

    WON = "won"
    OUTRANKED = "outranked"
    LOST = "lost"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Step:
    """One rule's part in a decision. verdict: a Mark. why: one short sentence, safe to show."""

    rule: str
    verdict: Mark
    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """One rule as `tctl route ls` lists it."""

    rule: str
    first_bytes: str
    condition: str
    goes_to: str
    tls: str
    served: bool


def explain(first: bytes | ClientHello | Silence, table: Table, said: str = "") -> list[Step]:
    """Say for each rule of the table, in order, why it won or lost.

    Args:
        first: what came: bytes, a hello made up for the question, or Silence(). said: as for match().
    Raises:
        KeyError: said is nothing that this table has ever said.
    """
    table.states[said]  # a state that is not there explains nothing
    recognised = _recognise(first)
    verdicts = [(rule, _verdict(rule, recognised, said)) for rule in table.rules]
    if recognised is None or any(verdict is None for _, verdict in verdicts):
        return [_step(rule, verdict, undecided=True) for rule, verdict in verdicts]
    hits = [
        (_order(rule, verdict), index) for index, (rule, verdict) in enumerate(verdicts) if isinstance(verdict, Hit)
    ]
    winner = verdicts[min(hits)[1]][0]
    return [_step(rule, verdict, winner=winner) for rule, verdict in verdicts]


def listing(table: Table) -> list[Row]:
    """The table as text, a row for each rule, in order."""
    return [
        Row(rule.name, rule.first, str(rule.when), rule.goes_to, _tls_words(rule), rule.served) for rule in table.rules
    ]


def _recognise(first: bytes | ClientHello | Silence) -> First | None:
    """What match would look at; None while a ClientHello is incomplete or there is no byte at all."""
    if not isinstance(first, bytes):
        return first
    if first[:1] != bytes((TLS_HANDSHAKE,)):
        return first or None
    try:
        return clienthello.parse(first)
    except HelloError as error:
        return error


def _verdict(rule: Rule, first: First | None, said: str) -> Hit | str | None:
    if said not in rule.said:
        states = sorted(f"after the request of {state}" if state else "at first" for state in rule.said)
        return f"only {' or '.join(states)}"
    return None if first is None else rule.test(first)


def _order(rule: Rule, verdict: Hit) -> tuple[int, int]:
    return rule.rank, verdict.position if rule.rank is Rank.PRIVATE else 0


def _step(rule: Rule, verdict: Hit | str | None, winner: Rule | None = None, undecided: bool = False) -> Step:
    if isinstance(verdict, str):
        return Step(rule.name, Mark.LOST, verdict)
    if undecided:
        return Step(rule.name, Mark.UNDECIDED, "more bytes are needed to say")
    if winner is rule:
        return Step(rule.name, Mark.WON, str(rule.when) + ("" if rule.served else "; it is not enabled here"))
    assert winner is not None  # one rule holds for whatever comes
    return Step(rule.name, Mark.OUTRANKED, f"it holds, but {winner.name} decides first")


def _tls_words(rule: Rule) -> str:
    match rule.then:
        case Go(tls=None):
            return "passed through" if rule.then.passthrough else "in the protocol, if any"
        case Go(tls=tls):
            assert tls is not None
            return _one(next(iter(tls.values())))
        case Refuse() | Reply() | Redirect():
            return ""
        case unknown:
            assert_never(unknown)


def _one(tls: Tls) -> str:
    versions = "TLS 1.2, 1.3" if tls.tls12 else "TLS 1.3"
    asked = f"{tls.trust} certificate {tls.ask}" if tls.trust != "none" else "no client certificate"
    return f"{versions}, {tls.show} certificate shown, {asked}"
