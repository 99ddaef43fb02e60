"""What a client proves a password with: answers of authentication plug-ins to a server's nonce.

Belongs here: the arithmetic. Source: MySQL Internals Manual, "Authentication Method"; MySQL Server documentation,
"Caching SHA-2 Pluggable Authentication".
"""

from hashlib import sha1, sha256


def native(password: bytes, nonce: bytes) -> bytes:
    """Return the answer of mysql_native_password, which the protocol builds on SHA-1."""
    if not password:
        return b""
    first = sha1(password, usedforsecurity=False).digest()
    second = sha1(first, usedforsecurity=False).digest()
    return _xor(first, sha1(nonce + second, usedforsecurity=False).digest())


def caching_sha2(password: bytes, nonce: bytes) -> bytes:
    """Return the first answer of caching_sha2_password."""
    if not password:
        return b""
    first = sha256(password).digest()
    return _xor(first, sha256(sha256(first).digest() + nonce).digest())


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
