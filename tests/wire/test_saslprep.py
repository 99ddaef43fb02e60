"""SASLprep of passwords: RFC 4013's own examples, and what has no prepared form."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.saslprep import prepared


@pytest.mark.parametrize(
    ("password", "becomes"),
    [
        ("I\u00adX", "IX"),  # RFC 4013, section 3
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b\u3000c", "a b c"),
        ("pa\u0308ss", "p\u00e4ss"),
        ("\ufb01", "fi"),
        ("\u0627\u0031\u0628", "\u0627\u0031\u0628"),  # from right to left, ends included
    ],
)
def test_the_one_form_of_a_password(password: str, becomes: str) -> None:
    assert prepared(password) == becomes


@pytest.mark.parametrize(
    "password",
    [
        "",
        "\x07",  # ASCII is left alone, as PostgreSQL leaves it
        "\u00ad",  # nothing would be left
        "\u0627\u0031",  # RFC 4013: begins from right to left and does not end so
        "1\u0627",
        "\u0627a\u0628",
        "\u00aa\u0007",
        "\u00aa\u0085",
        "\u00aa\ue000",
        "\u00aa\ufdd0",
        "\u00aa\ufffd",
        "\u00aa\u2ff0",
        "\u00aa\u200e",
        "\u00aa\U000e0001",
        "\u00aa\U0001f600",  # not assigned in Unicode 3.2
    ],
)
def test_what_has_no_prepared_form_is_taken_as_it_is(password: str) -> None:
    assert prepared(password) == password


@given(st.text(max_size=20))
def test_either_way_of_writing_a_letter_is_one_password(text: str) -> None:
    once = prepared(text)
    assert prepared(once) == once
    if text.isascii():
        assert once == text
    elif once != text:
        assert unicodedata.is_normalized("NFKC", once)
