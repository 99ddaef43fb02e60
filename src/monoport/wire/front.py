"""What a database protocol's opening can lead to on the proxy's side: closed values, one per step.

Belongs here: the values every protocol's `Front` machine returns and the shape of that machine. How one protocol
reads its opening lives in `wire/<protocol>`; what the proxy does about a step lives in `proxy/database.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias, runtime_checkable


class Secured(StrEnum):
    """How the bytes that a front reads are protected, and whether a certificate came with them."""

    PLAIN = "plain"  # straight from the wire
    ANONYMOUS = "anonymous"  # inside TLS that brought no client certificate
    CERTIFIED = "certified"  # inside TLS that brought a verified client certificate


class Why(StrEnum):
    """Why the proxy or the agent refuses, for a protocol to put in its own codes."""

    DENIED = "denied"  # the identity may not do this
    UNKNOWN = "unknown"  # no such database
    OFFLINE = "offline"  # known, but it or its agent cannot be reached
    PROTOCOL = "protocol"  # the peer broke the protocol
    TLS_REQUIRED = "tls_required"  # no login without TLS
    UNSUPPORTED = "unsupported"  # well-formed, but not offered here
    ENDED = "ended"  # a running session is over: certificate expired, user locked, proxy stopping
    INTERNAL = "internal"  # our own fault


@dataclass(frozen=True, slots=True)
class Known:
    """What the proxy knows of a session before the client has said anything, for protocols whose server speaks first.

    process_id: the number by which the session's statements can be cancelled. server_version: of the real server, ""
    if it is not known yet, or not yet which server it is.
    """

    process_id: int = 0
    server_version: str = ""


NOTHING_KNOWN = Known()


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes to the client, then go on reading."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send `reply` to the client, then let TLS begin on the same stream; a client certificate is required in it."""

    reply: bytes
    alpn: str | None = None  # the one ALPN name to select if the client offers it
    behind: bytes = b""  # what came behind the request, where clients do not wait: TLS, and nothing else


@dataclass(frozen=True, slots=True)
class Login:
    """The client has said who it wants to be and where; `forward` are the bytes the agent must see first."""

    user: str  # "" where the protocol names none: the certificate's destination decides
    database: str
    forward: bytes
    secret_bytes: int = 4  # length of the cancel secret that this client can keep
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)  # what else it sets for its session
    features: tuple[str, ...] = ()  # beyond an ordinary session, such as "replication": a role must allow each by name


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client asks to cancel what another connection runs, proving it by that connection's key."""

    process_id: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Closed:
    """The opening is over without a login; `why`, if there is one, and `reason` are for the client too."""

    reason: str
    why: Why | None = None


Step: TypeAlias = Send | StartTls | Login | Cancel | Closed


class Front(Protocol):
    """A database protocol's opening, as a pure machine: bytes in, one step out, or None for "need more"."""

    def begin(self, secured: Secured, known: Known = NOTHING_KNOWN) -> Step | None:
        """Start reading on a stream that is `secured`; called again once in-protocol TLS stands."""

    def receive(self, data: bytes) -> Step | None:
        """Take `data` from the client (b"" to go on with what is buffered) and return the next step."""

    def refuse(self, why: Why, reason: str) -> bytes:
        """Return the protocol's own words for a refusal, to be followed by a close."""


@runtime_checkable
class Explaining(Front, Protocol):
    """A front of a protocol whose clients show only how their own requests fail: what `refuse` says is not enough."""

    def explain(self, data: bytes) -> Step | None:
        """Take the bytes of a client that was refused and return the next step: Send, Closed at the end, or None."""
