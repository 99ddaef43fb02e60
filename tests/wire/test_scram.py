"""SCRAM-SHA-256 as a client."""

from __future__ import annotations

from base64 import b64decode
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.scram import BOUND, LEAST, MOST, UNOFFERED, Scram, ScramError

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
        (CHALLENGE.replace(b"s=W22", "s=Wé2".encode()), "base64"),
        (b"m=ext," + CHALLENGE, "an extension"),
        (b"\xff", "UTF-8"),
        (b"", "nonce"),
    ],
)
def test_a_server_that_does_not_play_by_the_rules(challenge: bytes, why: str) -> None:
    with pytest.raises(ScramError, match=why):
        Scram("user", "pencil", NONCE).proof(challenge)


def test_nothing_verifies_before_the_proof() -> None:
    with pytest.raises(ScramError, match="password"):
        Scram("user", "pencil", NONCE).verify(b"v=")


def test_the_channel_is_in_what_is_proven() -> None:
    scram = Scram("user", "pencil", NONCE, BOUND, b"hash of a certificate")
    assert scram.begin() == b"p=tls-server-end-point,,n=user,r=" + NONCE.encode()
    bound = scram.proof(CHALLENGE)
    said = bound.partition(b",")[0].removeprefix(b"c=")
    assert b64decode(said) == b"p=tls-server-end-point,,hash of a certificate"
    assert bound.rpartition(b",p=")[2] != FINAL.rpartition(b",p=")[2]
    with pytest.raises(ScramError, match="password"):
        scram.verify(OUTCOME)  # the answer to a client whose channel it is not
    scram = Scram("user", "pencil", NONCE, UNOFFERED)
    assert scram.begin()[:3] == b"y,,"
    assert scram.proof(CHALLENGE).startswith(b"c=eSws,")


def test_a_password_is_prepared() -> None:
    assert Scram("user", "\u2163\u00ad", NONCE).proof(CHALLENGE) == Scram("user", "IV", NONCE).proof(CHALLENGE)


@pytest.mark.parametrize("place", range(len(CHALLENGE)))
def test_a_challenge_cut_short_is_never_the_whole_ones(place: int) -> None:
    try:
        assert Scram("user", "pencil", NONCE).proof(CHALLENGE[:place]) != FINAL
    except ScramError:
        pass


@given(st.integers(0, 10**12))
def test_a_server_makes_nobody_count_for_long(count: int) -> None:
    """Whatever is asked for beyond the bounds is refused before the first round."""
    challenge = CHALLENGE.replace(b"i=4096", f"i={count + MOST + 1}".encode())
    with pytest.raises(ScramError, match="iterations"):
        Scram("user", "pencil", NONCE).proof(challenge)
    if count < LEAST:
        with pytest.raises(ScramError, match="iterations"):
            Scram("user", "pencil", NONCE).proof(CHALLENGE.replace(b"i=4096", f"i={count}".encode()))


@given(st.binary(max_size=80), st.lists(st.integers(0, 90), max_size=4))
def test_whatever_a_server_says_it_is_an_answer_or_a_scram_error(data: bytes, places: list[int]) -> None:
    cuts = sorted({0, len(CHALLENGE), *(place % len(CHALLENGE) for place in places)})
    spoilt = data.join(CHALLENGE[a:b] for a, b in pairwise(cuts))
    scram = Scram("user", "pencil", NONCE)
    try:
        assert scram.proof(spoilt).startswith(b"c=biws,r=" + NONCE.encode())
    except ScramError:
        pass
    with pytest.raises(ScramError):
        scram.verify(data)
