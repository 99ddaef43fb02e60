"""What passwords are proven with, checked as a server checks it: from what it keeps, which is not the password."""

from __future__ import annotations

from hashlib import sha1, sha256

from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.mysql.proof import caching_sha2, native

NONCE = b"abcdefghijklmnopqrst"


def unveiled(proof: bytes, mask: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(proof, mask, strict=True))


@given(st.binary(min_size=1, max_size=80))
def test_a_server_that_keeps_the_double_hash_takes_the_proof(password: bytes) -> None:
    kept = sha1(sha1(password).digest()).digest()
    assert sha1(unveiled(native(password, NONCE), sha1(NONCE + kept).digest())).digest() == kept
    kept = sha256(sha256(password).digest()).digest()
    assert sha256(unveiled(caching_sha2(password, NONCE), sha256(kept + NONCE).digest())).digest() == kept


def test_no_password_is_proven_by_nothing() -> None:
    assert (native(b"", NONCE), caching_sha2(b"", NONCE)) == (b"", b"")
