"""PostgreSQL's messages as bytes: start-up packets, framing, and the few server messages that we write ourselves.

Belongs here: encoding and decoding of single messages of protocol 3.x. What a sequence of them means lives in
`front` (opening), `statements` (what a client runs) and `backend` (the server's opening).
Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import TypeAlias

MAX_STARTUP = 10_000  # MAX_STARTUP_PACKET_LENGTH of PostgreSQL itself: what an unknown peer may make us keep
MAX_NAME = 63  # NAMEDATALEN - 1: the server cuts longer names, so a longer one could alias another
MAX_SECRET = 256  # longest cancel key that protocol 3.2 allows

SSL_CODE = 80877103  # 1234 << 16 | 5679
GSSENC_CODE = 80877104
CANCEL_CODE = 80877102
MAJOR = 3
MAX_MINOR = 2  # 3.2 is the newest version whose messages we know

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
GSSENC_REQUEST = bytes.fromhex("0000000804d21630")
TLS_ACCEPTED = b"S"
REFUSED = b"N"  # to SSLRequest and to GSSENCRequest: go on without

REPLICATION = "replication"  # the feature that a role must allow for a connection to the server's WAL sender
# Values that leave a connection an ordinary one: the boolean literals of false, in full. What is not one of these is
# taken for replication, whatever the server would say to it.
_NOT_REPLICATION = frozenset({"false", "off", "no", "0"})

_U32 = Struct("!I")
_TWO = Struct("!II")


class ProtocolError(ValueError):
    """Bytes that break PostgreSQL's protocol; the text says how."""


@dataclass(frozen=True, slots=True)
class SslRequest:
    """The client asks for TLS."""


@dataclass(frozen=True, slots=True)
class GssEncRequest:
    """The client asks for GSSAPI encryption, which monoport never offers."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The client asks to cancel the query of another connection."""

    process_id: int
    secret: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the packet as it goes to a server."""
        return _U32.pack(12 + len(self.secret)) + _TWO.pack(CANCEL_CODE, self.process_id) + self.secret


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """The client's first real message: protocol version and parameters in the order sent."""

    minor: int
    parameters: Mapping[str, str]

    @property
    def user(self) -> str:
        """The database user asked for, "" if none."""
        return self.parameters.get("user", "")

    @property
    def database(self) -> str:
        """The database asked for; as in the server, the user's name when none is given."""
        return self.parameters.get("database", "") or self.user

    @property
    def settings(self) -> dict[str, str]:
        """The parameters beside user and database."""
        return {name: value for name, value in self.parameters.items() if name not in {"user", "database"}}

    @property
    def features(self) -> tuple[str, ...]:
        """What it asks for beyond an ordinary session."""
        replication = self.parameters.get("replication", "false").lower() not in _NOT_REPLICATION
        return (REPLICATION,) if replication else ()

    def encode(self) -> bytes:
        """Return the packet as it goes to a server."""
        body = b"".join(f"{key}\0{value}\0".encode() for key, value in self.parameters.items()) + b"\0"
        return _TWO.pack(8 + len(body), MAJOR << 16 | self.minor) + body


Opening: TypeAlias = SslRequest | GssEncRequest | CancelRequest | StartupMessage


def parse_opening(data: bytes | bytearray) -> tuple[Opening, int] | None:
    """Read one packet of a connection's opening (the packets that carry no type byte).

    Returns the packet and how many bytes it took, or None if more are needed. Raises ProtocolError.
    Source: PostgreSQL documentation, "Message Flow: Start-up".
    """
    if len(data) < 8:
        if len(data) >= 4 and not 8 <= _U32.unpack_from(data)[0] <= MAX_STARTUP:
            raise ProtocolError(f"start-up packet of {_U32.unpack_from(data)[0]} bytes, limit {MAX_STARTUP}")
        return None
    size, code = _TWO.unpack_from(data)
    if not 8 <= size <= MAX_STARTUP:
        raise ProtocolError(f"start-up packet of {size} bytes, limit {MAX_STARTUP}")
    if len(data) < size:
        return None
    body = bytes(data[8:size])
    if code in (SSL_CODE, GSSENC_CODE):
        if body:
            raise ProtocolError(f"encryption request of {size} bytes, expected 8")
        return (SslRequest() if code == SSL_CODE else GssEncRequest()), size
    if code == CANCEL_CODE:
        if not 8 <= len(body) <= 4 + MAX_SECRET:
            raise ProtocolError(f"cancel request of {size} bytes, expected 16 to {12 + MAX_SECRET}")
        return CancelRequest(_U32.unpack_from(body)[0], body[4:]), size
    if code >> 16 != MAJOR:
        raise ProtocolError(f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: monoport speaks 3.0 to 3.2")
    return StartupMessage(code & 0xFFFF, _parameters(body)), size


def _parameters(body: bytes) -> dict[str, str]:
    if body == b"\0":
        return {}
    if not body.endswith(b"\0\0"):
        raise ProtocolError("start-up packet does not end with a terminator")
    try:
        parts = body[:-2].decode().split("\0")
    except UnicodeDecodeError:
        raise ProtocolError("start-up packet is not UTF-8") from None
    if len(parts) % 2 or not all(parts[::2]):
        raise ProtocolError("start-up packet has a parameter without name or value")
    parameters = dict(zip(parts[::2], parts[1::2], strict=True))
    if len(parameters) * 2 != len(parts):
        raise ProtocolError("start-up packet names a parameter twice")
    return parameters


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Frame `body` as one message of the one-byte type `kind`."""
    return kind + _U32.pack(4 + len(body)) + body


def error_response(severity: str, sqlstate: str, text: str, *, hint: str = "") -> bytes:
    """Build an ErrorResponse; NULs in `text` are dropped, since they end a field."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", text), ("H", hint)]
    body = b"".join(f"{key}{value.replace(chr(0), '')}\0".encode() for key, value in fields if value)
    return message(b"E", body + b"\0")


def parse_error(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse's body by their one-letter codes ("M" message, "C" SQLSTATE, …)."""
    return {part[:1].decode("latin-1"): part[1:].decode(errors="replace") for part in body.split(b"\0") if part}


def negotiate_version(minor: int, options: Sequence[str]) -> bytes:
    """Build a NegotiateProtocolVersion: the newest minor version served and the `_pq_.` options not known."""
    body = _TWO.pack(MAJOR << 16 | minor, len(options)) + b"".join(f"{name}\0".encode() for name in options)
    return message(b"v", body)


def backend_key_data(process_id: int, secret: bytes) -> bytes:
    """Build the BackendKeyData that tells a client how it may cancel."""
    return message(b"K", _U32.pack(process_id) + secret)
