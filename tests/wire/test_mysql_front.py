"""MySQL's opening on the proxy's side: every order of messages, every split, every lie about lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.front import Closed, Known, Login, Secured, Send, StartTls, Step, Why
from monoport.wire.mysql.front import ANNOUNCED, CODES, DEFAULT_VERSION, MysqlFront, nonce
from monoport.wire.mysql.handshake import (
    CLEAR,
    MAX_ATTRIBUTES,
    NATIVE,
    SHA2,
    SHA256,
    Answer,
    Greeting,
    ServerRefusal,
    read_answer,
    read_greeting,
    read_switch,
)
from monoport.wire.mysql.packets import Capability, ProtocolError, Reader, packet, prefixed, read_error, sized, take

NONCE = b"abcdefghijklmnopqrst"
FLAGS = (
    Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.PLUGIN_AUTH | Capability.CONNECT_WITH_DB
)  # fmt: skip


def made() -> MysqlFront:
    return MysqlFront(lambda: NONCE)


def answer(user: str = "alice", database: str = "app", flags: Capability = FLAGS, **more: object) -> bytes:
    return Answer(flags, user, database, **more).encode()  # type: ignore[arg-type]


def greeting(step: Step | None) -> Greeting:
    assert isinstance(step, Send)
    found = take(step.data)
    assert found is not None
    assert found[0] == 0
    return read_greeting(found[1])


def login(front: MysqlFront, data: bytes) -> Step | None:
    greeting(front.begin(Secured.CERTIFIED))
    assert front.receive(b"") is None
    return front.receive(data)


def test_the_greeting_says_what_is_known() -> None:
    first = greeting(made().begin(Secured.CERTIFIED, Known(4711, "5.5.5-10.11.6-MariaDB")))
    assert (first.version, first.thread, first.plugin) == ("5.5.5-10.11.6-MariaDB", 4711, NATIVE)
    assert (first.nonce, first.capabilities) == (NONCE, ANNOUNCED)
    other = greeting(made().begin(Secured.PLAIN))
    assert (other.version, other.plugin) == (DEFAULT_VERSION, SHA2)
    assert other.capabilities == ANNOUNCED | Capability.SSL


def test_nonces_are_strings_for_clients_and_never_the_same() -> None:
    found = {nonce() for _ in range(100)}
    assert len(found) == 100
    assert all(len(one) == 20 and b"\0" not in one and b"$" not in one and one.isascii() for one in found)


@pytest.mark.parametrize("plugin", [NATIVE, CLEAR, SHA2, ""])
def test_a_login_forwards_who_the_client_is_and_nothing_of_its_password(plugin: str) -> None:
    front = made()
    flags = FLAGS if plugin else FLAGS & ~Capability.PLUGIN_AUTH
    step = login(front, packet(1, answer(flags=flags, plugin=plugin, proof=b"hunter2")))
    if plugin == SHA2:
        assert step == Send(packet(2, b"\1\3"))  # the proof was enough
        step = front.receive(b"")
    assert isinstance(step, Login)
    assert (step.user, step.database) == ("alice", "app")
    found = take(step.forward)
    assert found is not None
    assert found[0] == (2 if plugin == SHA2 else 1)
    kept = read_answer(found[1], inside=True)
    assert (kept.user, kept.database, kept.proof, kept.plugin) == ("alice", "app", b"", "")
    assert b"hunter2" not in step.forward


def test_other_plug_ins_are_asked_for_one_that_needs_no_key_of_ours() -> None:
    front = made()
    step = login(front, packet(1, answer(plugin=SHA256, proof=b"\1")))
    assert isinstance(step, Send)
    found = take(step.data)
    assert found is not None
    assert found[0] == 2
    assert read_switch(found[1]) == (SHA2, NONCE)
    assert front.receive(b"") is None
    step = front.receive(packet(3, b"hunter2"))
    assert isinstance(step, Login)
    assert step.forward[3] == 3
    assert b"hunter2" not in step.forward


def test_attributes_and_flags_are_kept_as_far_as_they_were_offered() -> None:
    flags = FLAGS | Capability.CONNECT_ATTRS | Capability.DEPRECATE_EOF | Capability(1 << 27)
    step = login(made(), packet(1, answer(flags=flags, plugin=NATIVE, attributes={"program_name": "x\x1b"}, charset=8)))
    assert isinstance(step, Login)
    assert step.parameters == {"program_name": "x\x1b"}
    found = take(step.forward)
    assert found is not None
    kept = read_answer(found[1], inside=True)
    assert kept.capabilities & Capability.DEPRECATE_EOF
    assert not kept.capabilities & Capability(1 << 27)
    assert kept.charset == 8


@pytest.mark.parametrize("secured", [Secured.PLAIN, Secured.ANONYMOUS])
def test_tls_takes_what_came_behind_its_request_and_the_greeting_is_not_repeated(secured: Secured) -> None:
    front = made()
    greeting(front.begin(secured))
    request = Answer(FLAGS | Capability.SSL).encode(tls_request=True)
    step = front.receive(packet(1, request) + b"\x16\x03\x01")
    assert step == StartTls(b"", behind=b"\x16\x03\x01")
    assert front.begin(Secured.CERTIFIED) is None
    assert isinstance(front.receive(packet(2, answer(flags=FLAGS | Capability.SSL, plugin=NATIVE))), Login)


@pytest.mark.parametrize("secured", [Secured.PLAIN, Secured.ANONYMOUS])
def test_nobody_logs_in_without_a_certificate(secured: Secured) -> None:
    front = made()
    greeting(front.begin(secured))
    step = front.receive(packet(1, answer(plugin=NATIVE)))
    assert isinstance(step, Closed)
    assert step.why is Why.TLS_REQUIRED


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (packet(0, answer()), "packet number 0 where 1 was due"),
        (packet(2, answer()), "packet number 2 where 1 was due"),
        (packet(1, answer()) + b"\0", "bytes behind the answer"),
        (packet(1, answer()) * 2, "bytes behind the answer"),
        (packet(1, answer("a" * 385)), "user name of 385 bytes, limit 384"),
        (packet(1, answer(database="d" * 257)), "database name of 257 bytes, limit 256"),
        (packet(1, answer("al\x1b[31mice")), "user name contains control characters"),
        (packet(1, answer(database="a\np")), "database name contains control characters"),
        (packet(1, answer()[:40]), "has no end"),
        (packet(1, b""), "does not fit"),
        (packet(1, answer()[:20]), "does not fit"),
        (packet(1, answer(flags=Capability.SECURE_CONNECTION)), "before 4.1"),
        ((65_537).to_bytes(3, "little") + b"\1", "packet of 65537 bytes, limit 65536"),
        (packet(1, answer(flags=FLAGS | Capability.PLUGIN_AUTH_LENENC)[:38] + b"\xfe" + b"\xff" * 8), "does not fit"),
        (packet(1, answer(flags=FLAGS | Capability.PLUGIN_AUTH_LENENC)[:38] + b"\xfb"), "no length begins with"),
        (packet(1, answer(plugin="x" * 65)), "plug-in of 65 bytes"),
        (
            packet(1, answer(flags=FLAGS | Capability.CONNECT_ATTRS, attributes={"a": "b" * MAX_ATTRIBUTES})),
            "connection attributes of",
        ),
    ],
)
def test_what_breaks_the_protocol_is_closed_and_says_how(data: bytes, says: str) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        front = made()
        greeting(front.begin(Secured.CERTIFIED))
        step: Step | None = None
        for piece in pieces:
            step = front.receive(piece)
            if step is not None:
                break
        if "behind" in says and len(pieces) > 1:
            assert isinstance(step, Login)  # what follows comes too late for the front
            step = front.receive(b"\0")
        assert isinstance(step, Closed)
        assert says.partition(" the answer")[0] in step.reason


def test_an_answer_of_old_clients_without_a_length_before_the_password() -> None:
    flags = Capability.PROTOCOL_41
    raw = Answer(flags, "alice").encode()[:32] + b"alice\0secret\0"
    step = login(made(), packet(1, raw))
    assert isinstance(step, Login)
    assert (step.user, step.database) == ("alice", "")


@given(st.lists(st.integers(0, 200), max_size=8), st.sampled_from([NATIVE, SHA2, SHA256, CLEAR]))
def test_every_split_gives_the_same_steps(cuts: list[int], plugin: str) -> None:
    data = packet(1, answer(plugin=plugin, proof=b"p" * 20))

    def steps(pieces: list[bytes]) -> list[Step]:
        front = made()
        found = [front.begin(Secured.CERTIFIED)]
        for piece in pieces:
            step = front.receive(piece)
            while step is not None:
                found.append(step)
                if not isinstance(step, Send):
                    return found  # type: ignore[return-value]
                step = front.receive(b"")
        return found  # type: ignore[return-value]

    places = sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]
    assert steps(pieces) == steps([data])


@given(st.lists(st.binary(max_size=100), max_size=10), st.sampled_from(Secured))
def test_whatever_comes_the_front_answers_or_closes(pieces: list[bytes], secured: Secured) -> None:
    front = made()
    step = front.begin(secured)
    for piece in pieces:
        step = front.receive(piece)
        if isinstance(step, Login):
            assert secured is Secured.CERTIFIED
        if isinstance(step, Closed | Login | StartTls):
            break


@pytest.mark.parametrize("why", Why)
def test_a_refusal_counts_on_from_what_was_said(why: Why) -> None:
    front = made()
    assert front.refuse(why, "no")[3] == 0
    login(front, packet(1, answer(plugin=NATIVE)))
    found = take(front.refuse(why, "no"))
    assert found is not None
    assert found[0] == 2
    assert read_error(found[1]) == (*CODES[why], "no")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\x09", "protocol version 9"),
        (b"\x0a" + b"v" * 200 + b"\0", "server version of 200 bytes"),
        (b"\x0a1\0", "does not fit"),
        (b"", "does not fit"),
    ],
)
def test_a_server_that_is_none(payload: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_greeting(payload)


def test_a_server_that_greets_with_an_error() -> None:
    with pytest.raises(ServerRefusal, match="Too many") as raised:
        read_greeting(b"\xff\x10\x04#08004Too many connections")
    assert (raised.value.code, raised.value.state) == (1040, "08004")
    with pytest.raises(ServerRefusal, match="Host is blocked"):
        read_greeting(b"\xff\x69\x04Host is blocked")
    with pytest.raises(ProtocolError, match="no ERR"):
        read_error(b"\0")


def test_a_servers_version_is_shown_without_control_characters() -> None:
    raw = Greeting("8.0", 1, NONCE, ANNOUNCED, NATIVE).encode().replace(b"8.0", b"8\x1b\xff")
    assert read_greeting(raw).version == "8??"
    old = Greeting("5.1", 1, NONCE, Capability.PROTOCOL_41, "").encode()
    assert read_greeting(old).plugin == ""


def test_a_server_that_wants_passwords_of_old() -> None:
    with pytest.raises(ProtocolError, match=r"before 4\.1"):
        read_switch(b"\xfe")


def test_lengths_of_every_size() -> None:
    for size in (0, 250, 251, 65_535, 65_536, 1 << 24):
        assert prefixed(b"x" * size)[-1:] == (b"x" if size else b"\0")
        assert len(Reader(prefixed(b"x" * size)).prefixed()) == size
    assert sized((1 << 64) - 1) == b"\xfe" + b"\xff" * 8
    with pytest.raises(ValueError, match="eight octets"):
        sized(1 << 64)
