"""PostgreSQL's opening on the proxy's side."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.front import Cancel, Closed, Login, Secured, Send, StartTls, Step, Why
from monoport.wire.postgres.front import SQLSTATES, PostgresFront
from monoport.wire.postgres.messages import SSL_REQUEST, CancelRequest, StartupMessage, parse_error

GSS_REQUEST = struct.pack("!II", 8, 80877104)
STARTUP = StartupMessage(0, {"user": "bob", "database": "orders"}).encode()


def front(secured: Secured) -> PostgresFront:
    made = PostgresFront()
    assert made.begin(secured) is None
    return made


def told(step: Step | None) -> dict[str, str]:
    assert isinstance(step, Closed)
    assert step.why is not None
    return parse_error(PostgresFront().refuse(step.why, step.reason)[5:])


def run(machine: PostgresFront, chunks: list[bytes]) -> list[Step]:
    """Feed the chunks and go on after each step as the proxy does, until one that ends the opening."""
    steps: list[Step] = []
    for chunk in chunks:
        step = machine.receive(chunk)
        while step is not None:
            steps.append(step)
            if isinstance(step, Login | Cancel | Closed):
                return steps
            step = machine.begin(Secured.CERTIFIED) if isinstance(step, StartTls) else machine.receive(b"")
    return steps


@given(st.lists(st.integers(0, 100), max_size=8))
def test_every_split_of_an_opening_leads_to_the_same_login(cuts: list[int]) -> None:
    data = GSS_REQUEST + SSL_REQUEST + STARTUP
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    chunks = [data[a:b] for a, b in pairwise(places)]
    steps = run(front(Secured.CERTIFIED), chunks)
    assert steps == [Send(b"N"), Send(b"N"), Login("bob", "orders", STARTUP, 4)]


def test_byte_by_byte_with_tls_in_between() -> None:
    data = GSS_REQUEST + SSL_REQUEST + STARTUP
    steps = run(front(Secured.ANONYMOUS), [data[i : i + 1] for i in range(len(data))])
    assert steps == [Send(b"N"), StartTls(b"S", "postgresql"), Login("bob", "orders", STARTUP, 4)]


@pytest.mark.parametrize(("minor", "secret_bytes"), [(0, 4), (1, 4), (2, 32), (9999, 32)])
def test_cancel_secret_is_as_long_as_the_version_allows(minor: int, secret_bytes: int) -> None:
    startup = StartupMessage(minor, {"user": "bob"}).encode()
    assert front(Secured.CERTIFIED).receive(startup) == Login("bob", "bob", startup, secret_bytes)


@pytest.mark.parametrize("secured", list(Secured))
def test_cancel_is_taken_with_and_without_tls(secured: Secured) -> None:
    assert front(secured).receive(CancelRequest(5, b"1234").encode()) == Cancel(5, b"1234")


@pytest.mark.parametrize("secured", [Secured.PLAIN, Secured.ANONYMOUS])
def test_no_login_without_a_certificate(secured: Secured) -> None:
    error = told(front(secured).receive(STARTUP))
    assert (error["S"], error["C"]) == ("FATAL", "28000")
    assert "client certificate" in error["M"]


def test_bytes_behind_ssl_request_are_never_read_as_if_they_came_through_tls() -> None:
    error = told(front(Secured.ANONYMOUS).receive(SSL_REQUEST + STARTUP))
    assert error["M"] == "bytes behind SSLRequest"


def test_bytes_between_ssl_request_and_the_handshake() -> None:
    machine = front(Secured.ANONYMOUS)
    assert isinstance(machine.receive(SSL_REQUEST), StartTls)
    assert told(machine.receive(STARTUP))["C"] == "08P01"


@pytest.mark.parametrize("request_twice", [SSL_REQUEST, GSS_REQUEST])
def test_the_same_request_twice(request_twice: bytes) -> None:
    machine = front(Secured.CERTIFIED)
    assert machine.receive(request_twice) == Send(b"N")
    assert "twice" in told(machine.receive(request_twice))["M"]


def test_the_same_request_again_inside_tls() -> None:
    machine = front(Secured.ANONYMOUS)
    assert isinstance(machine.receive(SSL_REQUEST), StartTls)
    assert machine.begin(Secured.CERTIFIED) is None
    assert "twice" in told(machine.receive(SSL_REQUEST))["M"]


def test_second_startup_message() -> None:
    assert "behind the start-up" in told(front(Secured.CERTIFIED).receive(STARTUP + STARTUP))["M"]
    machine = front(Secured.CERTIFIED)
    assert isinstance(machine.receive(STARTUP), Login)
    assert "end of the start-up" in told(machine.receive(STARTUP))["M"]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "user name is missing"),
        ({"user": "b" * 64}, "user name is longer than 63 bytes"),
        ({"user": "bob", "database": "ü" * 32}, "database name is longer than 63 bytes"),
        ({"user": "b\nob"}, "user name contains control characters"),
        ({"user": "bob", "database": "\x1b[31m"}, "database name contains control characters"),
    ],
)
def test_names(parameters: dict[str, str], text: str) -> None:
    assert told(front(Secured.CERTIFIED).receive(StartupMessage(0, parameters).encode()))["M"] == text


@pytest.mark.parametrize("value", ["true", "TRUE", "database", "1", "on", "yes", "t", "nonsense", ""])
def test_replication_is_a_feature_of_the_login(value: str) -> None:
    step = front(Secured.CERTIFIED).receive(StartupMessage(0, {"user": "bob", "replication": value}).encode())
    assert isinstance(step, Login)
    assert step.features == ("replication",)


@pytest.mark.parametrize("value", ["0", "OFF", "no", "false"])
def test_an_ordinary_connection_may_say_that_it_is_one(value: str) -> None:
    step = front(Secured.CERTIFIED).receive(StartupMessage(0, {"user": "bob", "replication": value}).encode())
    assert isinstance(step, Login)
    assert step.features == ()


@pytest.mark.parametrize("name", ["al\0ice", "\0", "alice\0", "\0alice", "a\0user\0root"])
@pytest.mark.parametrize("what", ["user", "database", "application_name"])
def test_a_nul_in_a_name_never_makes_another_name(what: str, name: str) -> None:
    parameters = {"user": "bob", "database": "app", what: name}
    step = front(Secured.CERTIFIED).receive(StartupMessage(0, parameters).encode())
    assert told(step)["C"] == "08P01"


def test_garbage_is_told_so() -> None:
    assert told(front(Secured.CERTIFIED).receive(b"GET / HTTP/1.1\r\n"))["C"] == "08P01"


@given(st.lists(st.binary(max_size=40), max_size=10), st.sampled_from(list(Secured)))
def test_any_bytes_end_in_a_closed_outcome(chunks: list[bytes], secured: Secured) -> None:
    for step in run(front(secured), chunks):
        assert isinstance(step, Send | StartTls | Login | Cancel | Closed)


def test_every_refusal_has_a_state() -> None:
    assert set(SQLSTATES) == set(Why)
    error = parse_error(PostgresFront().refuse(Why.UNKNOWN, 'database "x" is not known here')[5:])
    assert (error["C"], error["M"]) == ("3D000", 'database "x" is not known here')
