"""The server's opening as the agent reads it: from the StartupMessage's answer to the first ReadyForQuery.

Belongs here: seeing that the server lets us in, putting our cancel key in place of the server's, and agreeing on one
protocol version with both sides. How a password is proven is in `login`. Behind the first ReadyForQuery the server's
bytes are nobody's business.
"""

from collections.abc import Sequence
from struct import Struct

from monoport.wire.postgres.login import AuthenticationDemanded, Login, LoginError, asked_for
from monoport.wire.postgres.messages import (
    MAJOR,
    MAX_MINOR,
    MAX_SECRET,
    CancelRequest,
    ProtocolError,
    backend_key_data,
    message,
    negotiate_version,
    parse_error,
)

MAX_MESSAGE = 65_536  # of one message in the opening; libpq itself allows 30,000 before authentication is done
SHORT_SECRET = 4  # bytes; the only length that protocol 3.0 and 3.1 know

_HEAD = Struct("!cI")
_U32 = Struct("!I")


class LoginRefused(ProtocolError):
    """The server does not take the password; `sqlstate` is its own word for it, "" if it gave none."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("the server refuses the login")
        self.sqlstate = sqlstate


class Backend:
    """Passes a server's opening on to the client, with the one message replaced that must be.

    With a `login` the server's questions are answered here, in `answer`, and the client sees none of them: what the
    server says between our proof and its AuthenticationOk goes to nobody, for it could hold what has been proven.

    Args:
        process_id: the proxy's number for this connection, 32 bits.
        secret: the proxy's cancel secret; protocol 3.0 and 3.1 get its first four bytes.
        client_minor: minor version that the client asked for.
        dropped: names of `_pq_.` parameters that the client sent and the server was not given.
        login: what proves the database user's password; None where the certificate is all there is.
    """

    def __init__(
        self,
        process_id: int,
        secret: bytes,
        client_minor: int,
        dropped: Sequence[str] = (),
        login: Login | None = None,
    ) -> None:
        self.process_id = process_id
        self._secret = secret
        self._client_minor = client_minor
        self._asked = self._agreed = min(client_minor, MAX_MINOR)
        self._dropped = dropped
        self._login = login
        self._buffer = bytearray()
        self.answer = b""  # what the server is to get now; whoever sends it empties it
        self.admitted = False  # AuthenticationOk has been seen
        self.ready = False  # ReadyForQuery has been seen: pass bytes on without calling receive
        self.key: CancelRequest | None = None  # what the real server wants to see in a cancel request

    @property
    def proves(self) -> bool:
        """Whether a password is proven here."""
        return self._login is not None

    def receive(self, data: bytes) -> bytes:
        """Take the server's bytes and return what the client gets for them, whole messages until `ready`.

        With a `login`, and until `admitted`, it may take half a second: keys are derived.
        Raises AuthenticationDemanded, LoginError, LoginRefused, ProtocolError.
        Source: PostgreSQL documentation, "Message Flow: Start-up".
        """
        if self.ready:
            return data
        self._buffer += data
        out = bytearray()
        position = 0
        while len(self._buffer) - position >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._buffer, position)
            if not 4 <= size <= MAX_MESSAGE:
                raise ProtocolError(f"server message of {size} bytes in the opening, limit {MAX_MESSAGE}")
            end = position + 1 + size
            if len(self._buffer) < end:
                break
            out += self._message(kind, bytes(self._buffer[position + 5 : end]))
            position = end
            if self.ready:
                out += self._buffer[position:]
                position = len(self._buffer)
        del self._buffer[:position]
        return bytes(out)

    def _message(self, kind: bytes, body: bytes) -> bytes:
        match kind:
            case b"R":
                return self._authentication(body)
            case b"v":
                self._negotiate(body)
                return b""  # our own follows, once, when we know that the server goes on
            case b"K":
                return self._key_data(body)
            case b"Z":
                self.ready = True
        if self.admitted:
            return message(kind, body)
        if kind not in (b"E", b"N"):
            raise ProtocolError(f"server sent message {kind!r} before authentication")
        if self._login is None or not self._login.told:
            return message(kind, body)
        if kind == b"E":
            raise LoginRefused(_sqlstate(body))
        return b""

    def _authentication(self, body: bytes) -> bytes:
        if len(body) < 4:
            raise ProtocolError("server's authentication request is too short")
        if self.admitted:
            raise ProtocolError("server asks for authentication when it is done")
        code = _U32.unpack_from(body)[0]
        if code:
            if self._login is None:
                raise AuthenticationDemanded(asked_for(code))
            self.answer += self._login.answer(code, body[4:])
            return b""
        if self._login is not None and not self._login.settled:
            raise LoginError("lets us in before it has proven that it knows the password")
        self.admitted = True
        out = message(b"R", body)
        if self._agreed != self._client_minor or self._dropped:
            out = negotiate_version(self._agreed, self._dropped) + out
        return out

    def _negotiate(self, body: bytes) -> None:
        if len(body) < 8 or self.admitted:
            raise ProtocolError("server's NegotiateProtocolVersion is malformed or late")
        version = _U32.unpack_from(body)[0]
        # PostgreSQL sends the whole version, its documentation once said the minor one alone.
        minor = version & 0xFFFF
        if version >> 16 not in (0, MAJOR) or minor > self._asked:
            raise ProtocolError(f"server negotiates protocol {version >> 16}.{minor}, asked for 3.{self._asked}")
        self._agreed = minor

    def _key_data(self, body: bytes) -> bytes:
        if not self.admitted or not 8 <= len(body) <= 4 + MAX_SECRET:
            raise ProtocolError(f"server's cancel key of {len(body)} bytes, or before authentication")
        self.key = CancelRequest(_U32.unpack_from(body)[0], body[4:])
        secret = self._secret if self._agreed >= 2 else self._secret[:SHORT_SECRET]
        return backend_key_data(self.process_id, secret)


def _sqlstate(body: bytes) -> str:
    """The SQLSTATE of an ErrorResponse, if it is one; nothing else of what a server says can pass for it."""
    found = parse_error(body).get("C", "")
    return found if len(found) == 5 and found.isascii() and found.isalnum() else ""
