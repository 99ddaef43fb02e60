"""One row of the routing table as a value: what it takes, when it holds, and what follows.

Belongs here: rules and their consequences, frozen values that match, explain and the listing all read. Does not: which
rows there are (table) and how they are searched (match).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from monoport.routing.conditions import Condition, First, Hit, Verdict, alpn_of, sni
from monoport.routing.outcome import Answer, Code, Kind, Outcome, Refusal, Route, Tls
from monoport.wire import alert, http
from monoport.wire.clienthello import ClientHello, HelloError

NO_PROTOCOL = alert.fatal(alert.NO_APPLICATION_PROTOCOL)


class Rank(IntEnum):
    """What decides first; within PRIVATE the client's order of ALPN names decides, elsewhere the table's order."""

    FIRST = 1  # SNI names that decide whatever the ALPN, and first bytes that are no TLS
    PRIVATE = 2  # private and direct ALPN names that are served
    RESERVED = 3  # the same, not served: never answered by what follows
    ORDINARY = 4


@dataclass(frozen=True, slots=True)
class Go:
    """The connection goes to a handler; tls is keyed by the ALPN name to select: equal routes share a value."""

    kind: Kind
    tls: Mapping[str | None, Tls] | None
    passthrough: bool = False
    protocol: str | None = None
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """The connection ends."""

    code: Code
    reason: str
    send: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """The client is answered and speaks again; not a byte may wait behind the request of this size."""

    send: bytes
    size: int
    said: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """The client is told to use https; fallback is the host[:port] for requests that name none."""

    fallback: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One row.

    first: what users call such first bytes. takes: of what type they are. said: the states of the connection in which
    the row is looked at. goes_to: where it leads, in words. served: False makes a refusal of it, not_enabled.
    """

    name: str
    first: str
    takes: type[object]
    when: Condition
    then: Go | Refuse | Reply | Redirect
    goes_to: str
    rank: Rank = Rank.ORDINARY
    said: frozenset[str] = frozenset({""})
    served: bool = True

    def test(self, first: First) -> Verdict:
        """Return a Hit, why the row does not hold, or None while too few bytes are there to say."""
        if not isinstance(first, self.takes):
            return "other first bytes"
        return self.when.test(first)  # type: ignore[arg-type]  # `takes` is the type that `when` takes; the table sees to it

    def outcome(self, first: First, hit: Hit) -> Outcome:
        """Return what follows when the row has won, None when that needs more bytes."""
        if not self.served:
            return self._refuse(Code.NOT_ENABLED, f"{self.goes_to} is not enabled here", first)
        match self.then:
            case Go():
                return self._route(self.then, first, hit)
            case Refuse(code, reason, send):
                return self._refuse(code, reason, first, send)
            case Reply(send, size, said):
                assert isinstance(first, bytes)  # what this row takes
                if len(first) > size:
                    reason = f"{len(first) - size} octets came behind a request of {size} octets, before its answer"
                    return Refusal(Code.BYTES_BEHIND_REQUEST, reason, b"", self.name)
                return Answer(send, size, said, self.name)
            case Redirect(fallback):
                assert isinstance(first, bytes)  # what this row takes
                if (response := http.redirect(first, fallback)) is None:
                    return None
                return Refusal(Code.PLAINTEXT_HTTP, "plaintext HTTP on a TLS port", response, self.name)
            case unknown:
                assert_never(unknown)

    def _route(self, go: Go, first: First, hit: Hit) -> Route:
        tls = go.tls[hit.alpn] if go.tls is not None else None
        if isinstance(first, ClientHello):
            name, alpn = first.server_name, first.alpn
            return Route(go.kind, self.name, tls, go.passthrough, go.protocol, hit.target, name, alpn, go.sealed)
        return Route(go.kind, self.name, tls, go.passthrough, go.protocol)

    def _refuse(self, code: Code, reason: str, first: First, send: bytes = b"") -> Refusal:
        if isinstance(first, ClientHello):
            return Refusal(code, f"{reason} ({sni(first)}, {alpn_of(first)})", NO_PROTOCOL, self.name)
        if isinstance(first, HelloError):
            return Refusal(code, f"{reason}: {first}", send, self.name)
        if isinstance(first, bytes):
            return Refusal(code, f"{reason} (first bytes {first[:8].hex(' ')})", send, self.name)
        return Refusal(code, reason, send, self.name)
