"""What routing can decide: a closed set of values.

Belongs here: the outcomes and their parts. Does not: how they are reached (table, match) or carried out (proxy).
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Which handler a connection goes to."""

    SSH = "ssh"
    TUNNEL = "tunnel"
    DIALBACK = "dialback"
    DATABASE = "database"
    APPLICATION = "application"
    KUBERNETES = "kubernetes"
    WEB = "web"
    BOOTSTRAP = "bootstrap"
    AUTH = "auth"


class Ask(StrEnum):
    """Whether the TLS handshake asks the client for a certificate."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Show(StrEnum):
    """Which certificate the proxy shows: the cluster's host CA's, or the public one (https_keypairs or the same)."""

    CLUSTER = "cluster"
    PUBLIC = "public"


class Trust(StrEnum):
    """Whose client certificates verify."""

    NONE = "none"
    USER = "user"
    HOST = "host"


class Code(StrEnum):
    """The codes of routing's refusals; docs/routing.md explains each."""

    NOT_ENABLED = "not_enabled"
    UNKNOWN_ALPN = "unknown_alpn"
    UNKNOWN_CLUSTER = "unknown_cluster"
    MALFORMED_HELLO = "malformed_hello"
    UNKNOWN_PROTOCOL = "unknown_protocol"
    PLAINTEXT_HTTP = "plaintext_http"
    PLAINTEXT_DATABASE = "plaintext_database"
    BYTES_BEHIND_REQUEST = "bytes_behind_request"
    SILENCE = "silence"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Tls:
    """The TLS that a route speaks; equal values share one context.

    alpn: exactly the name to select, None to select none. tls12: TLS 1.2 is accepted beside 1.3.
    """

    show: Show
    ask: Ask
    trust: Trust
    alpn: str | None
    tls12: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Where a connection goes; final.

    rule: the deciding rule's name. tls: None when the handler gets the bytes as they came. passthrough: the bytes are
    relayed untouched. protocol: name of the database protocol. target: database, application, cluster or token that
    SNI or ALPN names. server_name, alpn: what the client offered. sealed: what follows the opening is between the
    client and the agent.
    """

    kind: Kind
    rule: str
    tls: Tls | None
    passthrough: bool = False
    protocol: str | None = None
    target: str | None = None
    server_name: str | None = None
    alpn: tuple[str, ...] = ()
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection that ends here.

    code: one of Code, or a code of a later step. reason: one plain sentence for an operator, safe to log.
    send: octets for the client before the connection is closed. rule: the deciding rule's name, "" outside routing.
    """

    code: str
    reason: str
    send: bytes = b""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Octets to send, after which the client speaks again.

    consumed: octets of its first bytes that are used up. said: what to pass to the next match(). rule: the deciding
    rule's name.
    """

    send: bytes
    consumed: int
    said: str
    rule: str = ""


Outcome = Route | Refusal | Answer | None
