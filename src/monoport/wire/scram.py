"""SCRAM-SHA-256 as a client: how an agent proves a password to a server that cannot check certificates.

Belongs here: the messages and their checks, for every protocol that carries them. Sending them, and keeping the
derivation of the key off the loop, is the engine's.
Source: RFC 5802, RFC 7677; RFC 5929 for the channel
"""

import hmac
from base64 import b64decode, b64encode
from hashlib import pbkdf2_hmac, sha256

from monoport.wire.saslprep import prepared

MECHANISM = "SCRAM-SHA-256"
BINDING_MECHANISM = "SCRAM-SHA-256-PLUS"  # the same, tied to the TLS connection it runs in
LEAST, MOST = 4096, 1_000_000  # iterations: RFC 7677 asks for the first, the second takes half a second

# What the client's first message says of channel binding. The server's proof covers it: whoever stands between and
# takes away the server's offer is found out by UNOFFERED.
UNBOUND = "n,,"  # we know none here
UNOFFERED = "y,,"  # we do, and the server has not offered it
BOUND = "p=tls-server-end-point,,"


class ScramError(ValueError):
    """The server's part is not what the exchange asks for; the text says how."""


class Scram:
    """One exchange.

    Args:
        user: as the server knows it; "" where the server has it from elsewhere. password: not prepared yet.
        nonce: printable, without a comma, never used before.
        header: UNBOUND, UNOFFERED or BOUND.
        channel: with BOUND, the hash of the certificate that the server has shown.
    """

    def __init__(self, user: str, password: str, nonce: str, header: str = UNBOUND, channel: bytes = b"") -> None:
        self._password = prepared(password)
        self._nonce = nonce
        self._header = header
        self._channel = channel
        self._first = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
        self._verifier = b""

    def begin(self) -> bytes:
        """Return the client's first message."""
        return (self._header + self._first).encode()

    def proof(self, challenge: bytes) -> bytes:
        """Return the client's final message; derives a key, which takes up to half a second. Raises ScramError."""
        said = _attributes(challenge)
        if "m" in said:
            raise ScramError("the server wants an extension that is not known here")
        nonce, salt, count = said.get("r", ""), _base64(said.get("s", "")), said.get("i", "")
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise ScramError("the server's nonce does not continue ours")
        if not salt or not count.isascii() or not count.isdecimal() or len(count) > 9:
            raise ScramError("the server names no salt or no iterations")
        if not LEAST <= int(count) <= MOST:
            raise ScramError(f"the server asks for {count} iterations, expected {LEAST} to {MOST}")
        salted = pbkdf2_hmac("sha256", self._password.encode(), salt, int(count))
        bound = b64encode(self._header.encode() + self._channel).decode()
        final = f"c={bound},r={nonce}"
        signed = ",".join((self._first, challenge.decode(), final)).encode()
        key = _hmac(salted, b"Client Key")
        signature = _hmac(sha256(key).digest(), signed)
        self._verifier = _hmac(_hmac(salted, b"Server Key"), signed)
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        return f"{final},p={b64encode(proof).decode()}".encode()

    def verify(self, outcome: bytes) -> None:
        """Check that the server knows the password, too. Raises ScramError."""
        said = _attributes(outcome)
        if not self._verifier or not hmac.compare_digest(_base64(said.get("v", "")), self._verifier):
            raise ScramError("the server does not know the password")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise ScramError("the server's message holds broken base64") from None


def _attributes(message: bytes) -> dict[str, str]:
    try:
        parts = message.decode().split(",")
    except UnicodeDecodeError:
        raise ScramError("the server's message is not UTF-8") from None
    return {name: value for name, _, value in (part.partition("=") for part in parts)}
