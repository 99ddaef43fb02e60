"""A password's proof to a PostgreSQL server: its three ways, and servers that lie in them."""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import b64decode, b64encode
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.postgres.backend import Backend, LoginRefused
from monoport.wire.postgres.login import AuthenticationDemanded, Login, LoginError
from monoport.wire.postgres.messages import ProtocolError, backend_key_data, error_response, message

USER, PASSWORD, NONCE = "alice", "correct horse", "rOprNGfwEbeRWgbNEkqO"
CHANNEL = bytes(range(32))
SECRET = b"ours"
PLAIN, PLUS = b"SCRAM-SHA-256", b"SCRAM-SHA-256-PLUS"


def asked(code: int, body: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!I", code) + body)


def sasl(*mechanisms: bytes) -> bytes:
    return asked(10, b"".join(one + b"\0" for one in mechanisms) + b"\0")


OK = asked(0)
REST = message(b"S", b"server_version\x0015.18\0") + backend_key_data(11, b"real") + message(b"Z", b"I")
THEIRS = message(b"S", b"server_version\x0015.18\0") + backend_key_data(99, SECRET) + message(b"Z", b"I")


def made(*, verified: bool = True, channel: bytes | None = None, password: str = PASSWORD) -> Backend:
    return Backend(99, SECRET, 0, (), Login(USER, password, NONCE, verified=verified, channel=channel))


class Server:
    """SCRAM from the server's side, written by RFC 5802 alone. What it says can be spoilt on the way out."""

    def __init__(self, password: str = PASSWORD, count: int = 4096, offers: tuple[bytes, ...] = (PLAIN,)) -> None:
        self.offers = offers
        self._salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt of it", count)
        self._count = count
        self.mechanism = b""
        self._first = self._challenge = b""
        self.header = b""

    def begin(self) -> bytes:
        return sasl(*self.offers)

    def challenge(self, said: bytes) -> bytes:
        body = opened(said)
        self.mechanism, _, rest = body.partition(b"\0")
        assert struct.unpack_from("!I", rest)[0] == len(rest) - 4
        binding, authzid, self._first = rest[4:].split(b",", 2)
        self.header = binding + b"," + authzid + b","
        nonce = self._first.partition(b",r=")[2] + b"theirs"
        self._challenge = b"r=" + nonce + b",s=" + b64encode(b"salt of it") + b",i=" + str(self._count).encode()
        return self._challenge

    def outcome(self, said: bytes, channel: bytes = b"") -> bytes:
        without, _, proof = opened(said).rpartition(b",p=")
        expected = b64encode(self.header + channel) if self.mechanism == PLUS else b64encode(self.header)
        assert without.split(b",")[0] == b"c=" + expected
        signed = b",".join((self._first, self._challenge, without))
        stored = hashlib.sha256(hmac.digest(self._salted, b"Client Key", "sha256")).digest()
        signature = hmac.digest(stored, signed, "sha256")
        key = bytes(a ^ b for a, b in zip(b64decode(proof), signature, strict=True))
        assert hashlib.sha256(key).digest() == stored, "the client knows the password"
        return b"v=" + b64encode(hmac.digest(hmac.digest(self._salted, b"Server Key", "sha256"), signed, "sha256"))


def opened(said: bytes) -> bytes:
    """The body of one message `p`."""
    assert said[:1] == b"p"
    assert struct.unpack_from("!I", said, 1)[0] == len(said) - 1
    return said[5:]


def tell(machine: Backend, data: bytes, places: list[int]) -> tuple[bytes, bytes]:
    """Give it a server's bytes in pieces: what the client and what the server get for them."""
    cuts = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    client = b"".join(machine.receive(data[a:b]) for a, b in pairwise(cuts))
    answer, machine.answer = machine.answer, b""
    return client, answer


def scram(machine: Backend, server: Server, places: list[int], channel: bytes = b"") -> bytes:
    """A whole exchange, to ReadyForQuery; what the client gets of it."""
    client, first = tell(machine, server.begin(), places)
    assert client == b""
    client, final = tell(machine, asked(11, server.challenge(first)), places)
    assert client == b""
    assert not machine.admitted
    client, nothing = tell(machine, asked(12, server.outcome(final, channel)) + OK + REST, places)
    assert nothing == b""
    assert machine.ready
    return client


def test_scram_whole_and_byte_by_byte() -> None:
    assert scram(made(), Server(), []) == OK + THEIRS
    assert scram(made(), Server(), list(range(400))) == OK + THEIRS


@given(st.lists(st.integers(0, 400), max_size=8))
def test_scram_whatever_the_split(places: list[int]) -> None:
    assert scram(made(), Server(), places) == OK + THEIRS


def test_the_first_message_is_what_libpq_sends() -> None:
    _, said = tell(made(), sasl(PLAIN), [])
    first = b"n,,n=,r=" + NONCE.encode()
    assert opened(said) == PLAIN + b"\0" + struct.pack("!I", len(first)) + first


@pytest.mark.parametrize(
    ("channel", "offers", "mechanism", "header"),
    [
        (None, (PLAIN,), PLAIN, b"n,,"),
        (None, (PLUS, PLAIN), PLAIN, b"n,,"),
        (CHANNEL, (PLAIN,), PLAIN, b"y,,"),
        (CHANNEL, (PLUS, PLAIN), PLUS, b"p=tls-server-end-point,,"),
        (CHANNEL, (PLUS,), PLUS, b"p=tls-server-end-point,,"),
        (CHANNEL, (b"OAUTHBEARER", PLAIN), PLAIN, b"y,,"),
    ],
)
def test_channel_binding(channel: bytes | None, offers: tuple[bytes, ...], mechanism: bytes, header: bytes) -> None:
    server = Server(offers=offers)
    assert scram(made(channel=channel), server, [], channel or b"") == OK + THEIRS
    assert (server.mechanism, server.header) == (mechanism, header)


def test_md5() -> None:
    # As PostgreSQL does it: md5(md5(password user) salt), both in hex.
    inner = hashlib.md5(b"correct horsealice", usedforsecurity=False).hexdigest().encode()
    expected = b"md5" + hashlib.md5(inner + b"\1\2\3\4", usedforsecurity=False).hexdigest().encode()
    for places in ([], list(range(20))):
        machine = made()
        client, said = tell(machine, asked(5, b"\1\2\3\4"), places)
        assert (client, opened(said)) == (b"", expected + b"\0")
        assert tell(machine, OK + REST, places) == (OK + THEIRS, b"")
        assert machine.ready


def test_the_password_itself_goes_only_to_a_server_that_has_proven_its_name() -> None:
    machine = made()
    client, said = tell(machine, asked(3), [])
    assert (client, opened(said)) == (b"", b"correct horse\0")
    assert tell(machine, OK + REST, []) == (OK + THEIRS, b"")
    machine = made(verified=False)
    with pytest.raises(LoginError, match=r"tls\.mode insecure does not prove who asks"):
        machine.receive(asked(3))
    assert machine.answer == b""


def test_a_server_that_asks_for_nothing_lets_us_in() -> None:
    machine = made()
    assert tell(machine, OK + REST, []) == (OK + THEIRS, b"")
    assert machine.proves
    assert not Backend(99, SECRET, 0).proves


def test_the_servers_own_refusal_before_any_proof_passes() -> None:
    said = error_response("FATAL", "28000", "no pg_hba.conf entry")
    assert made().receive(said) == said
    machine = made()
    machine.receive(sasl(PLAIN))
    assert machine.receive(said) == said


@pytest.mark.parametrize(
    ("said", "sqlstate"),
    [
        (error_response("FATAL", "28P01", f"password {PASSWORD} is wrong"), "28P01"),
        (error_response("FATAL", PASSWORD, "x"), ""),
        (error_response("FATAL", "28\xb2\xb2\xb2", "x"), ""),
        (error_response("FATAL", "28-01", "x"), ""),
        (message(b"E", b""), ""),
    ],
)
@pytest.mark.parametrize("question", [asked(3), asked(5, b"salt")])
def test_what_a_server_says_of_a_password_goes_to_nobody(question: bytes, said: bytes, sqlstate: str) -> None:
    machine = made()
    machine.receive(question)
    assert machine.receive(message(b"N", b"M" + PASSWORD.encode() + b"\0\0")) == b""
    with pytest.raises(LoginRefused) as refused:
        machine.receive(said)
    assert refused.value.sqlstate == sqlstate
    assert PASSWORD not in str(refused.value)


def test_a_wrong_password() -> None:
    machine, server = made(password="other"), Server()
    _, first = tell(machine, server.begin(), [])
    _, final = tell(machine, asked(11, server.challenge(first)), [])
    with pytest.raises(AssertionError, match="knows the password"):
        server.outcome(final)
    with pytest.raises(LoginRefused):
        machine.receive(error_response("FATAL", "28P01", "password authentication failed"))


def started() -> tuple[Backend, bytes]:
    """A machine that has begun SCRAM, and a challenge it would take."""
    machine, server = made(), Server()
    _, first = tell(machine, server.begin(), [])
    return machine, server.challenge(first)


def test_nobody_is_let_in_before_the_server_has_proven_itself() -> None:
    machine, challenge = started()
    with pytest.raises(LoginError, match="before it has proven"):
        machine.receive(OK + REST)
    machine, challenge = started()
    machine.receive(asked(11, challenge))
    assert machine.answer
    with pytest.raises(LoginError, match="before it has proven"):
        machine.receive(OK + REST)
    assert not machine.admitted
    for signature in (b"v=", b"v=" + b64encode(bytes(32)), b"e=other-error", b"", b"\xff"):
        machine, challenge = started()
        machine.receive(asked(11, challenge))
        with pytest.raises(LoginError, match="breaks SCRAM"):
            machine.receive(asked(12, signature) + OK + REST)
        assert not machine.admitted
        assert not machine.ready


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"r=rO", b"r=xO", "nonce does not continue ours"),
        (b"theirs", b"", "nonce does not continue ours"),
        (b"i=4096", b"i=999999999", "999999999 iterations, expected 4096 to 1000000"),
        (b"i=4096", b"i=1", "1 iterations"),
        (b"i=4096", b"i=99999999999999999999", "no salt or no iterations"),
        (b",i=4096", b"", "no salt or no iterations"),
        (b",s=", b",x=", "no salt or no iterations"),
    ],
)
def test_lies_in_the_challenge_get_no_proof(old: bytes, new: bytes, why: str) -> None:
    machine, challenge = started()
    assert old in challenge
    with pytest.raises(LoginError, match=why):
        machine.receive(asked(11, challenge.replace(old, new)))
    assert machine.answer == b""


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        (asked(3, b"x"), LoginError, "1 bytes too many"),
        (asked(5, b"sal"), LoginError, "salt of 3 bytes, expected 4"),
        (asked(5, b"salty"), LoginError, "salt of 5 bytes"),
        (asked(10), LoginError, "without its end"),
        (asked(10, PLAIN), LoginError, "without its end"),
        (asked(10, PLAIN + b"\0"), LoginError, "without its end"),
        (asked(10, b"\0\0"), AuthenticationDemanded, "SASL without SCRAM-SHA-256"),
        (sasl(b"SCRAM-SHA-1", b"OAUTHBEARER"), AuthenticationDemanded, "SASL without SCRAM-SHA-256"),
        (sasl(PLUS), AuthenticationDemanded, "SASL without SCRAM-SHA-256"),
        (asked(11, b"r=x"), LoginError, "message 11 out of order"),
        (asked(12, b"v=x"), LoginError, "message 12 out of order"),
        (asked(7), AuthenticationDemanded, "GSSAPI"),
        (asked(2), AuthenticationDemanded, "Kerberos"),
        (asked(77), AuthenticationDemanded, "type 77"),
        (asked(5, b"salt") + asked(5, b"salt"), LoginError, "message 5 out of order"),
        (asked(3) + asked(3), LoginError, "message 3 out of order"),
        (asked(5, b"salt") + asked(3), LoginError, "message 3 out of order"),
        (sasl(PLAIN) + asked(3), LoginError, "message 3 out of order"),
        (sasl(PLAIN) + sasl(PLAIN), LoginError, "message 10 out of order"),
        (sasl(PLAIN) + asked(12, b"v=x"), LoginError, "message 12 out of order"),
        (asked(5, b"salt") + OK + asked(3), ProtocolError, "when it is done"),
        (OK + OK, ProtocolError, "when it is done"),
        (REST, ProtocolError, "before authentication"),
    ],
)
def test_servers_that_break_the_login(said: bytes, error: type[Exception], why: str) -> None:
    machine = made()
    with pytest.raises(error, match=why):
        machine.receive(said)
    assert not machine.ready


def test_what_is_cut_short_waits() -> None:
    machine, challenge = started()
    whole = asked(11, challenge)
    assert machine.receive(whole[:-1]) == b""
    assert machine.answer == b""
    machine.receive(whole[-1:])
    assert opened(machine.answer).startswith(b"c=")


def messages(data: bytes) -> list[bytes]:
    """Whole messages, one by one."""
    found = []
    while data:
        size = 1 + struct.unpack_from("!I", data, 1)[0]
        found.append(data[:size])
        data = data[size:]
    return found


QUESTIONS = [asked(3), asked(5, b"salt"), sasl(PLAIN), asked(11, b"r=x"), asked(12, b"v=x"), asked(77)]
WORDS = [OK, message(b"N", b"M\0\0"), error_response("FATAL", "28P01", PASSWORD), message(b"S", b"a\0b\0")]


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(QUESTIONS + WORDS))))
def test_whatever_a_server_says_the_client_hears_nothing_of_the_login(chunks: list[bytes]) -> None:
    machine = made()
    heard = b""
    try:
        for chunk in chunks:
            heard += machine.receive(chunk)
    except ProtocolError:
        pass
    if not machine.ready:
        assert [one for one in messages(heard) if one[:1] == b"R"] == [OK] * machine.admitted
