"""MySQL's opening as the proxy sees it: it greets, lets TLS begin, hears who the client is, and asks for no password.

Belongs here: the order of the messages. No identity, no permission: the proxy decides those behind the Login. Whether
the client may come in, it is told by the agent, with the packet that follows.

The identity is the certificate. A client has to bring an authentication plug-in all the same: whatever it makes of the
nonce is read and thrown away here, so that a password typed by habit goes no further.
"""

import secrets
from collections.abc import Callable

from monoport.wire.front import NOTHING_KNOWN, Closed, Known, Login, Secured, Send, StartTls, Step, Why
from monoport.wire.mysql.handshake import (
    CLEAR,
    FAST_OK,
    MORE,
    NATIVE,
    NONCE,
    SHA2,
    Answer,
    Greeting,
    read_answer,
    switch,
)
from monoport.wire.mysql.packets import Capability, ProtocolError, error, packet, take

# What is announced until the real server has been asked. Clients infer from it what they may ask for, as collations
# that neither older nor MariaDB's servers have.
DEFAULT_VERSION = "5.7.44"
# What every server since MySQL 5.7 and MariaDB 10.2 can do. zstd is not among it: it saves little against the zlib
# there is. Query attributes and MariaDB's own flags are not either: the other half of the servers does not have them.
ANNOUNCED = (
    Capability.LONG_PASSWORD
    | Capability.FOUND_ROWS
    | Capability.LONG_FLAG
    | Capability.CONNECT_WITH_DB
    | Capability.NO_SCHEMA
    | Capability.COMPRESS
    | Capability.ODBC
    | Capability.LOCAL_FILES
    | Capability.IGNORE_SPACE
    | Capability.PROTOCOL_41
    | Capability.INTERACTIVE
    | Capability.IGNORE_SIGPIPE
    | Capability.TRANSACTIONS
    | Capability.SECURE_CONNECTION
    | Capability.MULTI_STATEMENTS
    | Capability.MULTI_RESULTS
    | Capability.PS_MULTI_RESULTS
    | Capability.PLUGIN_AUTH
    | Capability.CONNECT_ATTRS
    | Capability.PLUGIN_AUTH_LENENC
    | Capability.SESSION_TRACK
    | Capability.DEPRECATE_EOF
)
# What must be the same towards the real server, or its packets would be read wrongly.
FRAMING = Capability.PROTOCOL_41 | Capability.SESSION_TRACK | Capability.DEPRECATE_EOF
ACCEPTED = frozenset(
    {NATIVE, SHA2, CLEAR, ""}
)  # plug-ins whose first word is enough; from others we ask for one of these

# Code and SQLSTATE of each refusal: MySQL's "Server Error Message Reference".
CODES = {
    Why.DENIED: (1045, "28000"),  # ER_ACCESS_DENIED_ERROR
    Why.UNKNOWN: (1049, "42000"),  # ER_BAD_DB_ERROR
    Why.OFFLINE: (1429, "HY000"),  # ER_CONNECT_TO_FOREIGN_DATA_SOURCE; clients take numbers from 2000 for their own
    Why.PROTOCOL: (1043, "08S01"),  # ER_HANDSHAKE_ERROR
    Why.TLS_REQUIRED: (3159, "HY000"),  # ER_SECURE_TRANSPORT_REQUIRED
    Why.UNSUPPORTED: (1235, "42000"),  # ER_NOT_SUPPORTED_YET
    Why.ENDED: (1053, "08S01"),  # ER_SERVER_SHUTDOWN
    Why.INTERNAL: (1105, "HY000"),  # ER_UNKNOWN_ERROR
}
_OCTETS = bytes(octet for octet in range(1, 128) if octet != ord("$"))  # which some plug-ins read as an end, too
TLS_WANTED = "TLS with a client certificate is required here: set ssl-ca, ssl-cert and ssl-key"


def refusal(number: int, why: Why, reason: str) -> bytes:
    """Return the ERR packet that tells a MySQL client `reason`."""
    code, state = CODES[why]
    return error(number, code, state, reason)


def nonce() -> bytes:
    """Return a scramble as servers make it: without octets that end a string."""
    return bytes(secrets.choice(_OCTETS) for _ in range(NONCE))


class MysqlFront:
    """Takes one client through its opening: at most three packets of MAX_OPENING bytes."""

    __slots__ = ("_answer", "_buffer", "_greeting", "_next", "_nonce", "_over", "_proved", "_secured")

    def __init__(self, make: Callable[[], bytes] = nonce) -> None:
        self._nonce = make
        self._buffer = bytearray()
        self._greeting: Greeting | None = None
        self._answer: Answer | None = None  # of a client whose plug-in has more to say, or hears more
        self._proved = False  # it has said everything
        self._secured = Secured.PLAIN
        self._next = 0  # number of the next packet, from either side
        self._over = False

    def begin(self, secured: Secured, known: Known = NOTHING_KNOWN) -> Step | None:
        """Greet; once in-protocol TLS stands, go on behind the greeting."""
        self._secured = secured
        self._over = False
        if self._greeting is not None:
            return None
        version = known.server_version or DEFAULT_VERSION
        capabilities = ANNOUNCED if secured is Secured.CERTIFIED else ANNOUNCED | Capability.SSL
        plugin = NATIVE if "mariadb" in version.lower() else SHA2
        self._greeting = Greeting(version, known.process_id, self._nonce(), capabilities, plugin)
        return Send(self._say(self._greeting.encode()))

    def receive(self, data: bytes) -> Step | None:
        """Take the client's bytes and return the next step, None while its packet is incomplete."""
        if self._over:
            return self._close(Why.PROTOCOL, "bytes behind the end of the opening")
        self._buffer += data
        if self._proved:
            assert self._answer is not None  # it is what was proved
            return self._login(self._answer)
        try:
            found = take(self._buffer)
            if found is None:
                return None
            number, payload, size = found
            if number != self._next:
                raise ProtocolError(f"packet number {number} where {self._next} was due")
            self._next += 1
            del self._buffer[:size]
            return self._login(self._answer) if self._answer is not None else self._answered(payload)
        except ProtocolError as problem:
            return self._close(Why.PROTOCOL, str(problem))

    def refuse(self, why: Why, reason: str) -> bytes:
        """Return the ERR packet that tells the client `reason`."""
        return refusal(self._next, why, reason)

    def _answered(self, payload: bytes) -> Step:
        inside = self._secured is Secured.CERTIFIED
        answer = read_answer(payload, inside=inside)
        if answer.wants_tls:
            # Clients do not wait for an answer: what came behind the request is TLS already, and nothing else.
            behind, self._buffer = bytes(self._buffer), bytearray()
            self._over = True
            return StartTls(b"", behind=behind)
        if not inside:
            return self._close(Why.TLS_REQUIRED, TLS_WANTED)
        assert self._greeting is not None  # who answers was greeted
        if answer.plugin not in ACCEPTED:
            self._answer = answer
            return Send(self._say(switch(self._greeting.plugin, self._greeting.nonce)))
        if answer.plugin == SHA2 and len(answer.proof) > 1:  # one octet at most says that there is no password
            self._answer, self._proved = answer, True
            return Send(self._say(bytes((MORE, FAST_OK))))
        return self._login(answer)

    def _login(self, answer: Answer) -> Step:
        if self._buffer:
            return self._close(Why.PROTOCOL, "bytes behind the answer to the greeting")
        for what, name in (("user", answer.user), ("database", answer.database)):
            if not name.isprintable():
                return self._close(Why.DENIED, f"{what} name contains control characters")
        self._over = True
        kept = Answer(
            capabilities=(answer.capabilities & ANNOUNCED) | Capability.PLUGIN_AUTH_LENENC | Capability.CONNECT_ATTRS,
            user=answer.user,
            database=answer.database,
            attributes=answer.attributes,
            charset=answer.charset,
            max_packet=answer.max_packet,
        )
        forward = packet(self._next - 1, kept.encode())
        return Login(answer.user, answer.database, forward, parameters=answer.attributes)

    def _say(self, payload: bytes) -> bytes:
        self._next += 1
        return packet(self._next - 1, payload)

    def _close(self, why: Why, reason: str) -> Closed:
        self._over = True
        self._buffer.clear()
        return Closed(reason, why)
