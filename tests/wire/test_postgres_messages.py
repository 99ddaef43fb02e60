"""Start-up packets and server messages as bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.postgres.messages import (
    MAX_STARTUP,
    SSL_REQUEST,
    CancelRequest,
    GssEncRequest,
    ProtocolError,
    SslRequest,
    StartupMessage,
    backend_key_data,
    error_response,
    message,
    negotiate_version,
    parse_error,
    parse_opening,
)

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", 8 + len(body), code) + body


@given(st.dictionaries(NAMES, NAMES | st.just("")), st.integers(0, 65535))
def test_startup_round_trip(parameters: dict[str, str], minor: int) -> None:
    original = StartupMessage(minor, parameters)
    encoded = original.encode()
    assert parse_opening(encoded) == (original, len(encoded))
    assert parse_opening(encoded + b"more") == (original, len(encoded))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_packet_too_few_or_an_error(data: bytes) -> None:
    try:
        parsed = parse_opening(data)
    except ProtocolError:
        return
    assert parsed is None or 8 <= parsed[1] <= len(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (SSL_REQUEST, SslRequest()),
        (packet(80877104), GssEncRequest()),
        (packet(80877102, struct.pack("!I", 7) + b"abcd"), CancelRequest(7, b"abcd")),
        (packet(80877102, struct.pack("!I", 7) + b"s" * 256), CancelRequest(7, b"s" * 256)),
        (packet(196608, b"user\0bob\0\0"), StartupMessage(0, {"user": "bob"})),
        (packet(196610, b"\0"), StartupMessage(2, {})),
    ],
)
def test_packets_whole_and_split_at_every_byte(data: bytes, expected: object) -> None:
    for end in range(len(data)):
        assert parse_opening(data[:end]) is None
    assert parse_opening(data) == (expected, len(data))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (struct.pack("!I", 7), "7 bytes"),
        (struct.pack("!II", 7, 0), "7 bytes"),
        (struct.pack("!I", MAX_STARTUP + 1), "limit 10000"),
        (struct.pack("!II", MAX_STARTUP + 1, 196608), "limit 10000"),
        (b"GET / HTTP/1.1", "limit 10000"),
        (packet(80877103, b"x"), "encryption request of 9 bytes"),
        (packet(80877102, b"abcdefg"), "cancel request of 15 bytes"),
        (packet(80877102, b"a" * 261), "cancel request of 269 bytes"),
        (packet(131072, b"\0"), "unsupported frontend protocol 2.0"),
        (packet(196608), "terminator"),
        (packet(196608, b"user\0bob\0"), "terminator"),
        (packet(196608, b"user\0\xff\0\0"), "UTF-8"),
        (packet(196608, b"user\0\0"), "name or value"),
        (packet(196608, b"user\0bob\0options\0\0"), "name or value"),
        (packet(196608, b"\0bob\0\0"), "name or value"),
        (packet(196608, b"user\0bob\0user\0eve\0\0"), "twice"),
    ],
)
def test_malformed_packets(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        parse_opening(data)


def test_database_is_the_users_name_where_none_is_given() -> None:
    assert StartupMessage(0, {"user": "bob"}).database == "bob"
    assert StartupMessage(0, {"user": "bob", "database": ""}).database == "bob"
    assert StartupMessage(0, {"user": "bob", "database": "orders"}).database == "orders"
    assert StartupMessage(0, {}).user == ""


def test_cancel_round_trip() -> None:
    encoded = CancelRequest(1, b"x" * 32).encode()
    assert parse_opening(encoded) == (CancelRequest(1, b"x" * 32), 44)


def test_secrets_are_not_shown() -> None:
    assert "hunter" not in repr(CancelRequest(1, b"hunter"))


def test_server_messages() -> None:
    error = error_response("FATAL", "28000", "no\0pe", hint="ask")
    assert error[:1] == b"E"
    assert int.from_bytes(error[1:5], "big") == len(error) - 1
    assert parse_error(error[5:]) == {"S": "FATAL", "V": "FATAL", "C": "28000", "M": "nope", "H": "ask"}
    assert "H" not in parse_error(error_response("FATAL", "28000", "x")[5:])
    assert message(b"Z", b"I") == b"Z\0\0\0\5I"
    assert negotiate_version(0, ["_pq_.x"]) == b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.x\0"
    assert backend_key_data(1, b"abcd") == b"K\0\0\0\x0c\0\0\0\1abcd"
