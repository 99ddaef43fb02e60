"""The server's opening: our key for its own, one version for both sides, nothing behind ReadyForQuery touched."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.postgres.backend import MAX_MESSAGE, AuthenticationDemanded, Backend
from monoport.wire.postgres.messages import (
    CancelRequest,
    ProtocolError,
    backend_key_data,
    error_response,
    message,
    negotiate_version,
)

OK = message(b"R", struct.pack("!I", 0))
STATUS = message(b"S", b"server_version\x0015.18\0")
READY = message(b"Z", b"I")
SECRET = bytes(range(32))
ROWS = message(b"D", b"\0\1\0\0\0\4rows") + backend_key_data(1, b"not!")


def split(machine: Backend, data: bytes, places: list[int]) -> bytes:
    cuts = sorted({0, len(data), *places})
    return b"".join(machine.receive(data[a:b]) for a, b in pairwise(cuts))


def test_key_is_replaced_whatever_the_split() -> None:
    server = OK + STATUS + backend_key_data(11, b"real") + READY + ROWS
    client = OK + STATUS + backend_key_data(99, SECRET[:4]) + READY + ROWS
    for place in range(len(server) + 1):
        machine = Backend(99, SECRET[:4], 0)
        assert split(machine, server, [place]) == client
        assert machine.key == CancelRequest(11, b"real")
        assert machine.ready
    machine = Backend(99, SECRET[:4], 0)
    assert split(machine, server, list(range(len(server)))) == client


@given(st.lists(st.integers(0, 80), max_size=6), st.binary(max_size=50))
def test_what_follows_ready_is_untouched(places: list[int], rest: bytes) -> None:
    machine = Backend(99, b"abcd", 0)
    assert split(machine, OK + READY + rest, [p for p in places if p < 15 + len(rest)]).endswith(READY + rest)
    assert machine.receive(b"R") == b"R"


@pytest.mark.parametrize(
    ("client_minor", "server_says", "told", "secret"),
    [
        (0, b"", b"", SECRET[:4]),
        (2, b"", b"", SECRET),
        (2, negotiate_version(0, []), negotiate_version(0, []), SECRET[:4]),
        (9999, b"", negotiate_version(2, []), SECRET),
        (9999, negotiate_version(0, []), negotiate_version(0, []), SECRET[:4]),
        (2, message(b"v", struct.pack("!II", 1, 0)), negotiate_version(1, []), SECRET[:4]),
    ],
)
def test_versions(client_minor: int, server_says: bytes, told: bytes, secret: bytes) -> None:
    machine = Backend(99, SECRET, client_minor)
    got = machine.receive(server_says + OK + backend_key_data(11, b"s" * 32) + READY)
    assert got == told + OK + backend_key_data(99, secret) + READY


def test_options_the_server_was_not_given_are_named() -> None:
    machine = Backend(99, SECRET, 2, ["_pq_.x"])
    assert machine.receive(OK) == negotiate_version(2, ["_pq_.x"]) + OK


@pytest.mark.parametrize(("code", "method"), [(3, "password"), (5, "md5"), (10, "SCRAM"), (77, "type 77")])
def test_servers_that_ask_for_more_than_a_certificate(code: int, method: str) -> None:
    machine = Backend(99, SECRET, 0)
    with pytest.raises(AuthenticationDemanded) as caught:
        machine.receive(message(b"R", struct.pack("!I", code) + b"rest"))
    assert caught.value.method == method
    assert not machine.admitted


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(0, 3))
def test_whatever_a_server_says_the_real_key_stays_here(chunks: list[bytes], minor: int) -> None:
    """A server's bytes end in messages for the client or in an error; its own key is in none of them."""
    machine = Backend(99, SECRET, minor)
    real = b"\xfa\xde" * 8
    given_out = b""
    try:
        for chunk in (OK, backend_key_data(4711, real), *chunks):
            given_out += machine.receive(chunk)
    except ProtocolError:
        pass
    if not any(real[:4] in chunk for chunk in chunks):
        assert real not in given_out
    assert backend_key_data(99, SECRET if minor >= 2 else SECRET[:4]) in given_out


def test_errors_and_notices_pass() -> None:
    machine = Backend(99, SECRET, 0)
    data = message(b"N", b"\0") + error_response("FATAL", "28000", "no")
    assert machine.receive(data) == data
    assert not machine.ready


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"R\0\0\0\3", "message of 3 bytes"),
        (b"R" + struct.pack("!I", MAX_MESSAGE + 1), "limit 65536"),
        (message(b"R", b"\0"), "too short"),
        (STATUS, "before authentication"),
        (READY, "before authentication"),
        (backend_key_data(1, b"abcd"), "before authentication"),
        (OK + backend_key_data(1, b"abc"), "cancel key of 7 bytes"),
        (OK + backend_key_data(1, b"a" * 257), "cancel key of 261 bytes"),
        (message(b"v", b"\0\3\0\0"), "malformed or late"),
        (OK + negotiate_version(0, []), "malformed or late"),
        (negotiate_version(1, []), "asked for 3.0"),
        (message(b"v", struct.pack("!II", 4 << 16, 0)), "protocol 4.0"),
    ],
)
def test_servers_that_break_the_protocol(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        Backend(99, SECRET, 0).receive(data)
