"""SCRAM-SHA-256 as a client."""

from __future__ import annotations

import pytest

from monoport.wire.mongodb.scram import Scram, ScramError

# RFC 7677, section 3: user "user", password "pencil".
NONCE = "rOprNGfwEbeRWgbNEkqO"
FIRST = b"n,,n=user,r=" + NONCE.encode()
CHALLENGE = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
FINAL = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
OUTCOME = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_the_exchange_of_the_rfc() -> None:
    scram = Scram("user", "pencil", NONCE)
    assert scram.begin() == FIRST
    assert scram.proof(CHALLENGE) == FINAL
    scram.verify(OUTCOME)
    with pytest.raises(ScramError, match="does not know the password"):
        scram.verify(b"v=AAAA")


def test_names_are_escaped() -> None:
    assert Scram("a=b,c", "x", "n").begin() == b"n,,n=a=3Db=2Cc,r=n"


@pytest.mark.parametrize(
    ("challenge", "why"),
    [
        (CHALLENGE.replace(b"r=rO", b"r=xO"), "nonce"),
        (b"r=" + NONCE.encode() + b",s=AAAA,i=4096", "nonce"),
        (b"s=AAAA,i=4096", "nonce"),
        (CHALLENGE.replace(b"i=4096", b"i=4095"), "4095 iterations"),
        (CHALLENGE.replace(b"i=4096", b"i=1000001"), "1000001 iterations"),
        (CHALLENGE.replace(b"i=4096", b"i=4_096"), "no salt or no iterations"),
        (CHALLENGE.replace(b"i=4096", b"i=" + b"9" * 10), "no salt or no iterations"),
        (CHALLENGE.replace(b"s=W22", b"x=W22"), "no salt"),
        (CHALLENGE.replace(b"s=W22", b"s=W2!"), "base64"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_server_that_does_not_play_by_the_rules(challenge: bytes, why: str) -> None:
    with pytest.raises(ScramError, match=why):
        Scram("user", "pencil", NONCE).proof(challenge)


def test_nothing_verifies_before_the_proof() -> None:
    with pytest.raises(ScramError, match="password"):
        Scram("user", "pencil", NONCE).verify(b"v=")
