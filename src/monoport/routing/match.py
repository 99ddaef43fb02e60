"""First bytes and the table in, one outcome out: the decision that the listener makes for every connection.

Belongs here: the search through the table's indexes. Does not: the rules (rows), reading, TLS, or who may do what.
"""

from monoport.routing.conditions import First, Hit, Silence
from monoport.routing.outcome import Code, Outcome, Refusal, Route
from monoport.routing.rows import TLS_HANDSHAKE
from monoport.routing.rules import Rule
from monoport.routing.table import State, Table
from monoport.wire import clienthello
from monoport.wire.clienthello import ClientHello, HelloError


def match(first: bytes, table: Table, said: str = "") -> Outcome:
    """Decide where a connection goes.

    Args:
        first: every byte that came since the connection began, or since the last Answer.
        said: what the last Answer said, "" at first.
    Returns:
        Route and Refusal are final; Answer is to be sent, then the client speaks again; None asks for more bytes.
    Raises:
        KeyError: said is nothing that this table has ever said.
    """
    state = table.states[said]
    if not first:
        return None
    if first[0] != TLS_HANDSHAKE:
        return _opening(first, state)
    try:
        hello = clienthello.parse(first)
    except HelloError as error:
        return _taken(state.malformed, error)
    return None if hello is None else decide(hello, table, said)


def missing(first: bytes) -> int:
    """Return how many octets, at least, must follow first bytes for which match() asked for more."""
    return clienthello.missing(first) if first[:1] == bytes((TLS_HANDSHAKE,)) else 1


def decide(hello: ClientHello, table: Table, said: str = "") -> Outcome:
    """Decide where a connection with this ClientHello goes; arguments as for match()."""
    state = table.states[said]
    if (name := hello.server_name) is not None:
        rule = state.hosts.get(name) or state.domains.get(name.partition(".")[2])
        if rule is not None and isinstance(hit := rule.test(hello), Hit):
            return rule.outcome(hello, hit)
    for protocol in hello.alpn:
        rule = state.protocols.get(protocol)
        if rule is not None and isinstance(hit := rule.test(hello), Hit):
            return rule.outcome(hello, hit)
    for rule in state.hellos:
        if isinstance(hit := rule.test(hello), Hit):
            return rule.outcome(hello, hit)
    return _taken(state.otherwise, hello)


def silence(table: Table, first: bytes = b"", said: str = "", seconds: float | None = None) -> Route | Refusal:
    """Decide what becomes of a client that has stopped speaking before there was an outcome.

    Args:
        first: the bytes that match() has found too few; b"" if there were none.
        said: as for match().
        seconds: how long the caller waited, for the reason; None leaves it out.
    """
    state = table.states[said]
    waited = "" if seconds is None else f" in {seconds:g} s"
    if first:
        reason = f"incomplete first bytes: {len(first)} octets{waited} ({first[:8].hex(' ')})"
        return Refusal(Code.INCOMPLETE, reason, b"", state.otherwise.name)
    outcome = _taken(state.silence, Silence())
    if isinstance(outcome, Refusal):
        return Refusal(outcome.code, f"{outcome.reason}{waited}", outcome.send, outcome.rule)
    assert isinstance(outcome, Route)  # the table gives silence a route or a refusal
    return outcome


def _opening(first: bytes, state: State) -> Outcome:
    """Decide on first bytes that are no TLS."""
    undecided = False
    for rule in state.openings.get(first[0], ()):
        verdict = rule.test(first)
        if isinstance(verdict, Hit):
            return rule.outcome(first, verdict)
        undecided = undecided or verdict is None
    return None if undecided else _taken(state.otherwise, first)


def _taken(rule: Rule, first: First) -> Outcome:
    """The outcome of a rule that holds for whatever reaches it."""
    hit = rule.test(first)
    assert isinstance(hit, Hit)  # its condition is Always
    return rule.outcome(first, hit)
