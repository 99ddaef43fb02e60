"""PostgreSQL's opening as the proxy sees it: SSLRequest, GSSENCRequest, CancelRequest, StartupMessage.

Belongs here: the order in which these may come and what each is answered with. No identity, no permission: the proxy
decides those between the steps.
"""

from monoport.wire.front import NOTHING_KNOWN, Cancel, Closed, Known, Login, Secured, Send, StartTls, Step, Why
from monoport.wire.postgres.messages import (
    MAX_NAME,
    REFUSED,
    TLS_ACCEPTED,
    CancelRequest,
    GssEncRequest,
    ProtocolError,
    SslRequest,
    StartupMessage,
    error_response,
    parse_opening,
)

ALPN = "postgresql"  # what libpq 17 and newer offer, also after SSLRequest
LONG_SECRET = 32  # bytes of a cancel key for protocol 3.2, as PostgreSQL 18 itself makes them
SHORT_SECRET = 4  # protocol 3.0 knows no other length

# SQLSTATE of each refusal: https://www.postgresql.org/docs/current/errcodes-appendix.html
SQLSTATES = {
    Why.DENIED: "28000",  # invalid_authorization_specification
    Why.UNKNOWN: "3D000",  # invalid_catalog_name
    Why.OFFLINE: "57P03",  # cannot_connect_now
    Why.PROTOCOL: "08P01",  # protocol_violation
    Why.TLS_REQUIRED: "28000",
    Why.UNSUPPORTED: "0A000",  # feature_not_supported
    Why.ENDED: "57P01",  # admin_shutdown
    Why.INTERNAL: "XX000",  # internal_error
}


def refusal(why: Why, reason: str) -> bytes:
    """Return the FATAL ErrorResponse that tells a PostgreSQL client `reason`."""
    return error_response("FATAL", SQLSTATES[why], reason)


class PostgresFront:
    """Reads one client's opening; every method is pure and bounded by MAX_STARTUP bytes."""

    __slots__ = ("_asked", "_buffer", "_done", "_secured")

    def __init__(self) -> None:
        self._secured = Secured.PLAIN
        self._buffer = bytearray()
        self._asked: set[type] = set()  # each encryption request may come once
        self._done = False

    def begin(self, secured: Secured, known: Known = NOTHING_KNOWN) -> Step | None:  # the client begins
        """Start on a stream that is `secured`, anew once in-protocol TLS stands; the client speaks first."""
        self._secured = secured
        self._done = False
        return None

    def receive(self, data: bytes) -> Step | None:
        """Take the client's bytes and return the next step, None while its packet is incomplete."""
        if self._done:
            return self._close(Why.PROTOCOL, "bytes behind the end of the start-up")
        self._buffer += data
        try:
            parsed = parse_opening(self._buffer)
        except ProtocolError as error:
            return self._close(Why.PROTOCOL, str(error))
        if parsed is None:
            return None
        packet, size = parsed
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        if isinstance(packet, SslRequest | GssEncRequest):
            return self._encryption(packet)
        if isinstance(packet, CancelRequest):
            self._done = True
            return Cancel(packet.process_id, packet.secret)
        return self._startup(packet, raw)

    def refuse(self, why: Why, reason: str) -> bytes:
        """Return the FATAL ErrorResponse that tells the client `reason`."""
        return refusal(why, reason)

    def _encryption(self, packet: SslRequest | GssEncRequest) -> Step:
        if type(packet) in self._asked:
            return self._close(Why.PROTOCOL, "the same encryption request twice")
        self._asked.add(type(packet))
        if isinstance(packet, GssEncRequest):
            return Send(REFUSED)
        if self._secured is Secured.CERTIFIED:
            return Send(REFUSED)  # inside TLS that has brought the certificate; no third layer
        if self._buffer:
            # What an attacker in the middle put behind the request must not be read as if it came through TLS
            # (CVE-2021-23214).
            return self._close(Why.PROTOCOL, "bytes behind SSLRequest")
        self._done = True
        return StartTls(TLS_ACCEPTED, ALPN)

    def _startup(self, packet: StartupMessage, raw: bytes) -> Step:
        if self._secured is not Secured.CERTIFIED:
            return self._close(Why.DENIED, "a client certificate is required: connect with sslmode=verify-full")
        if self._buffer:
            return self._close(Why.PROTOCOL, "bytes behind the start-up message")
        for what, name in (("user", packet.user), ("database", packet.database)):
            if fault := _name_fault(name):
                return self._close(Why.DENIED, f"{what} name {fault}")
        self._done = True
        secret = LONG_SECRET if packet.minor >= 2 else SHORT_SECRET
        return Login(packet.user, packet.database, raw, secret, packet.settings, packet.features)

    def _close(self, why: Why, reason: str) -> Closed:
        self._done = True
        self._buffer.clear()
        return Closed(reason, why)


def _name_fault(name: str) -> str:
    if not name:
        return "is missing"
    if len(name.encode()) > MAX_NAME:
        return f"is longer than {MAX_NAME} bytes"
    if not name.isprintable():
        return "contains control characters"
    return ""
