"""Proving a password to a real server that cannot check certificates: its questions, and our answers.

Belongs here: SCRAM-SHA-256, MD5 and the password itself as messages, and their order. Who the client is, and what of
this it sees (nothing), is in `backend`.
Source: PostgreSQL documentation, "Message Flow: Start-up" and "SASL Authentication"
"""

from enum import Enum, IntEnum, auto
from hashlib import md5
from struct import Struct

from monoport.wire.postgres.messages import ProtocolError, message
from monoport.wire.scram import (
    BINDING_MECHANISM,
    BOUND,
    MECHANISM,
    UNBOUND,
    UNOFFERED,
    Scram,
    ScramError,
)

_NAMES = {2: "Kerberos", 3: "password", 5: "md5", 7: "GSSAPI", 9: "SSPI", 10: "SCRAM"}  # AuthenticationRequest

SALT = 4  # bytes of MD5's
_U32 = Struct("!I")


class AuthenticationDemanded(ProtocolError):
    """The server asks for what the agent has not got; `method` names it."""

    def __init__(self, method: str) -> None:
        super().__init__(f"the server asks for {method} authentication")
        self.method = method


class LoginError(ProtocolError):
    """The server does not go through a login as it should; the text says what it does."""


class Asked(IntEnum):
    """AuthenticationRequests that are answered here."""

    PASSWORD = 3
    MD5 = 5
    SASL = 10
    SASL_CONTINUE = 11
    SASL_FINAL = 12


class _Step(Enum):
    ASKED_NOTHING = auto()
    BEGUN = auto()  # SCRAM's first message is out
    PROVEN = auto()  # and our proof, but not yet the server's
    SETTLED = auto()


def asked_for(code: int) -> str:
    """What people call the method of an AuthenticationRequest."""
    return _NAMES.get(code, f"type {code}")


class Login:
    """One proof of one password, in the way that the server asks for.

    Args:
        user: the database user. password: its password.
        nonce: printable ASCII without a comma, never used before.
        verified: TLS has proven who the server is, so that it may be told the password itself.
        channel: the hash of the certificate that the server has shown, for `tls-server-end-point`; None if unknown.
    """

    def __init__(self, user: str, password: str, nonce: str, *, verified: bool, channel: bytes | None = None) -> None:
        self._user = user
        self._password = password
        self._nonce = nonce
        self._verified = verified
        self._channel = channel
        self._step = _Step.ASKED_NOTHING
        self._scram: Scram | None = None

    @property
    def told(self) -> bool:
        """Whether the server has been told what only those can say who know the password."""
        return self._step in (_Step.PROVEN, _Step.SETTLED)

    @property
    def settled(self) -> bool:
        """Whether the server may let us in now: it asked for nothing, or all that belongs to its way has been said."""
        return self._step in (_Step.ASKED_NOTHING, _Step.SETTLED)

    def answer(self, code: int, body: bytes) -> bytes:
        """Answer an AuthenticationRequest other than AuthenticationOk; to SCRAM's last there is nothing to say.

        Deriving SCRAM's key takes up to half a second. Raises AuthenticationDemanded, LoginError.
        """
        try:
            match code, self._step:
                case (Asked.PASSWORD, _Step.ASKED_NOTHING):
                    return self._itself(body)
                case (Asked.MD5, _Step.ASKED_NOTHING):
                    return self._md5(body)
                case (Asked.SASL, _Step.ASKED_NOTHING):
                    return self._begin(body)
                case (Asked.SASL_CONTINUE, _Step.BEGUN):
                    return self._proof(body)
                case (Asked.SASL_FINAL, _Step.PROVEN):
                    return self._verify(body)
        except ScramError as error:
            raise LoginError(f"breaks SCRAM: {error}") from error
        if code in set(Asked):
            raise LoginError(f"sends authentication message {code} out of order")
        raise AuthenticationDemanded(asked_for(code))

    def _itself(self, body: bytes) -> bytes:
        if body:
            raise LoginError(f"asks for the password with {len(body)} bytes too many")
        if not self._verified:
            raise LoginError("wants the password itself, and tls.mode insecure does not prove who asks")
        self._step = _Step.SETTLED
        return _said(self._password.encode())

    def _md5(self, body: bytes) -> bytes:
        if len(body) != SALT:
            raise LoginError(f"sends an md5 salt of {len(body)} bytes, expected {SALT}")
        self._step = _Step.SETTLED
        return _said(b"md5" + _hex(_hex((self._password + self._user).encode()) + body))

    def _begin(self, body: bytes) -> bytes:
        if not body.endswith(b"\0\0"):
            raise LoginError("sends a list of SASL mechanisms without its end")
        offered = body[:-2].split(b"\0")
        mechanism, header, channel = MECHANISM, UNBOUND, b""
        if self._channel is not None:
            header = UNOFFERED
            if BINDING_MECHANISM.encode() in offered:
                mechanism, header, channel = BINDING_MECHANISM, BOUND, self._channel
        if mechanism.encode() not in offered:
            raise AuthenticationDemanded(f"SASL without {MECHANISM}")
        # The server has the user from the StartupMessage and reads none here, as libpq sends none.
        self._scram = Scram("", self._password, self._nonce, header, channel)
        first = self._scram.begin()
        self._step = _Step.BEGUN
        return message(b"p", mechanism.encode() + b"\0" + _U32.pack(len(first)) + first)

    def _proof(self, body: bytes) -> bytes:
        assert self._scram is not None  # the step says so
        proof = self._scram.proof(body)
        self._step = _Step.PROVEN
        return message(b"p", proof)

    def _verify(self, body: bytes) -> bytes:
        assert self._scram is not None  # the step says so
        self._scram.verify(body)
        self._step = _Step.SETTLED
        return b""


def _said(secret: bytes) -> bytes:
    return message(b"p", secret + b"\0")


def _hex(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).hexdigest().encode()
