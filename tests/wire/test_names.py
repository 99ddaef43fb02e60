"""One canonical form of host names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monoport.wire.names import HostNameError, authority, canonical, host

LONG = ".".join(["a" * 49] * 5) + ".abcd"  # 254 octets


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("example.com", "example.com"),
        ("Example.COM.", "example.com"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("my_service.internal", "my_service.internal"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("bücher。example", "xn--bcher-kva.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        (LONG[:-1], LONG[:-1]),
    ],
)
def test_canonical(name, wanted):
    assert canonical(name) == wanted


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a.b..",
        "-a",
        "a-",
        "a b",
        "a/b",
        "a\0b",
        "a\nb",
        "a:b",
        "[::1]",
        "*.a",
        "a" * 64,
        LONG,
        "\u00fc" * 64,
        "\ud800.example",
    ],
)
def test_illegal(name):
    with pytest.raises(HostNameError) as caught:
        canonical(name)
    assert str(caught.value).isprintable()


def attempt(name: str) -> tuple[str, str]:
    """The canonical form, and the error where there is none."""
    try:
        return canonical(name), ""
    except HostNameError as error:
        return "", str(error)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_canonical_is_stable_and_its_errors_are_safe(name):
    found, error = attempt(name)
    assert error.isascii()
    assert error == "" or error.isprintable()
    if found:
        assert attempt(found) == attempt(found.upper()) == attempt(found + ".") == (found, "")


@pytest.mark.parametrize(
    ("text", "whole", "alone"),
    [
        ("Example.com", "example.com", "example.com"),
        ("Example.com.:3080", "example.com:3080", "example.com"),
        ("10.0.0.1:65535", "10.0.0.1:65535", "10.0.0.1"),
        ("[::1]", "[::1]", "[::1]"),
        ("[0:0::1]:443", "[::1]:443", "[::1]"),
    ],
)
def test_authority(text, whole, alone):
    assert authority(text) == whole
    assert host(text) == alone


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":443",
        "a:",
        "a:0",
        "a:65536",
        "a:123456",
        "a:+1",
        "a:١",
        "a:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[]",
        "[a]",
        "[fe80::1%eth0]",
        "user@a",
        "a\r\nX: y",
    ],
)
def test_illegal_authority(text):
    with pytest.raises(HostNameError):
        authority(text)
