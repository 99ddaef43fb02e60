"""MongoDB's opening on the proxy's side, what clients are told instead of a server's words, and a server's replies."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import bson as pymongo_bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.front import Closed, Login, Secured, Send, StartTls, Why
from monoport.wire.mongodb import hello, messages
from monoport.wire.mongodb.front import MAX_OPENING, MAX_TOLD, MongoFront, Refusing
from monoport.wire.mongodb.messages import HEADER, MSG, QUERY, Msg, ProtocolError, parse, reply_body
from monoport.wire.mongodb.replies import MAX_UNWANTED, Replies


def op_msg(document: dict[str, Any], request_id: int = 7, *, flags: int = 0, response_to: int = 0) -> bytes:
    body = struct.pack("<I", flags) + b"\0" + pymongo_bson.encode(document)
    return HEADER.pack(16 + len(body), request_id, response_to, MSG) + body


def op_query(document: dict[str, Any], collection: str = "admin.$cmd") -> bytes:
    body = bytes(4) + collection.encode() + b"\0" + struct.pack("<ii", 0, -1) + pymongo_bson.encode(document)
    return HEADER.pack(16 + len(body), 7, 0, QUERY) + body


def said(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = pymongo_bson.decode(data[21:] if HEADER.unpack_from(data)[3] == MSG else data[36:])
    return found


AHEAD = {"authenticate": 1, "mechanism": "MONGODB-X509", "user": "CN=alice", "db": "$external"}
HELLO = {"hello": 1, "helloOk": True, "compression": ["zlib"], "speculativeAuthenticate": AHEAD, "$db": "admin"}


def certified() -> MongoFront:
    front = MongoFront()
    assert front.begin(Secured.CERTIFIED) is None
    return front


@given(st.lists(st.integers(1, 40), max_size=20))
def test_every_split_of_a_hello_leads_to_the_same_login(sizes: list[int]) -> None:
    whole = data = op_msg(HELLO)
    front, step = certified(), None
    for size in [*sizes, len(data)]:
        if data:
            assert step is None
            step, data = front.receive(data[:size]), data[size:]
    assert step == Login("alice", "", whole)


@pytest.mark.parametrize(
    ("document", "user"),
    [
        ({"isMaster": 1}, ""),
        ({"ismaster": 1, "saslSupportedMechs": "admin.bob.x"}, "bob.x"),
        ({"hello": 1, "speculativeAuthenticate": {"saslStart": 1, "user": "bob"}}, ""),
        ({"hello": 1, "speculativeAuthenticate": {}}, ""),
        ({"hello": 1, "speculativeAuthenticate": 1}, ""),
        ({"$query": {"isMaster": 1}, "$readPreference": {"mode": "primary"}}, ""),
        ({"query": {"isMaster": 1, "saslSupportedMechs": "admin.eve"}}, "eve"),
    ],
)
def test_queries_that_ask_for_hello(document: dict[str, Any], user: str) -> None:
    data = op_query(document)
    assert certified().receive(data) == Login(user, "", data)


@pytest.mark.parametrize("secured", [Secured.PLAIN, Secured.ANONYMOUS])
def test_a_client_without_a_certificate_brings_tls_of_its_own(secured: Secured) -> None:
    front = MongoFront()
    assert front.begin(secured) == StartTls(b"")
    assert isinstance(front.receive(op_msg(HELLO)), Closed)  # not before its certificate is here


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (op_msg({"ping": 1, "$db": "admin"}), "begins with hello"),
        (op_query({"isMaster": 1}, "app.$cmd"), "begins with hello"),
        (op_query({"$query": {"ping": 1}}), "begins with hello"),
        (op_query({}), "begins with hello"),
        (op_msg(HELLO) + b"x", "bytes behind hello"),
        (op_msg(HELLO) + op_msg(HELLO), "bytes behind hello"),
        (op_msg({"hello": 1, "pad": "x" * MAX_OPENING}), f"limit {MAX_OPENING}"),
        (op_msg({"hello": 1, "saslSupportedMechs": "a." + "x" * 257}), "257 bytes, limit 256"),
        (op_msg({"hello": 1, "saslSupportedMechs": "a.\x1b[2J"}), "control characters"),
        (op_msg({"hello": 1, "saslSupportedMechs": "a.x\0y"}), "NUL"),
        (op_msg({"hello": 1, "saslSupportedMechs": 1}), "not a string"),
        (op_msg(HELLO, response_to=1), "response"),
        (b"\0\0\0\0", "of 0 bytes"),
        (op_query({"$query": {}}).replace(b"\5\0\0\0\0", b"\5\0\0\0\1"), "NUL"),
    ],
)
def test_what_is_no_opening(data: bytes, why: str) -> None:
    step = certified().receive(data)
    assert isinstance(step, Closed)
    assert step.why is Why.PROTOCOL
    assert why in step.reason


def test_nothing_follows_the_opening() -> None:
    front = certified()
    assert isinstance(front.receive(op_msg(HELLO)), Login)
    assert front.receive(b"x") == Closed("bytes behind the end of the opening", Why.PROTOCOL)


def test_who_is_refused_learns_why_from_its_first_command() -> None:
    front = certified()
    front.receive(op_msg(HELLO))
    first = front.refuse(Why.DENIED, "access denied [connection 7]")
    assert HEADER.unpack_from(first)[2] == 7
    greeting = said(first)
    assert greeting["ok"] == 1.0
    assert greeting["isWritablePrimary"] is True
    assert greeting["maxWireVersion"] >= 21
    assert "setName" not in greeting
    command = op_msg({"find": "c", "$db": "app"}, 8)
    assert front.explain(command[:20]) is None
    step = front.explain(command[20:])
    assert isinstance(step, Send)
    assert HEADER.unpack_from(step.data)[2] == 8
    assert said(step.data) == {
        "ok": 0.0, "errmsg": "access denied [connection 7]", "code": 13, "codeName": "Unauthorized"
    }  # fmt: skip
    assert front.explain(b"") is None


def test_a_refused_client_does_not_ask_for_ever() -> None:
    refusing = Refusing(Why.OFFLINE, "down")
    for _ in range(MAX_TOLD + 1):
        assert isinstance(refusing.receive(op_msg(HELLO)), Send)
    assert isinstance(refusing.receive(op_msg(HELLO)), Closed)
    assert isinstance(Refusing(Why.OFFLINE, "down").receive(b"\0\0\0\0"), Closed)
    assert isinstance(MongoFront().explain(op_msg(HELLO)), Closed)


def test_a_refusal_before_any_hello_is_the_error_itself() -> None:
    assert said(MongoFront().refuse(Why.UNSUPPORTED, "no"))["codeName"] == "CommandNotSupported"


# --- hello


def asked(document: dict[str, Any]) -> Msg:
    found = parse(op_msg(document))
    assert isinstance(found, Msg)
    return found


SERVER = {
    "isWritablePrimary": False, "secondary": True, "setName": "rs0", "hosts": ["a:1"], "me": "a:1", "primary": "a:1",
    "maxBsonObjectSize": 16777216, "maxWireVersion": 25, "minWireVersion": 0, "compression": ["zlib"],
    "topologyVersion": {"counter": 1}, "saslSupportedMechs": ["SCRAM-SHA-256"], "msg": "isdbgrid", "ok": 1.0,
}  # fmt: skip


def test_no_driver_learns_of_other_servers() -> None:
    answer = messages.msg(SERVER, request_id=1)
    kept = hello.server_hello(answer, reply_body(answer))
    expected = {
        "secondary": True, "maxBsonObjectSize": 16777216, "maxWireVersion": 25, "minWireVersion": 0,
        "msg": "isdbgrid", "ok": 1.0,
    }  # fmt: skip
    for name, primary, more in (("hello", "isWritablePrimary", {}), ("isMaster", "ismaster", {"helloOk": True})):
        made = messages.msg(hello.hello_reply(asked({name: 1}), kept), request_id=1)
        assert said(made) == {primary: False, **expected, **more}


def test_a_load_balancer_s_client_is_told_which_server_it_has() -> None:
    first, second, other = (
        hello.hello_reply(asked({"hello": 1, "loadBalanced": True}), identity=name)["serviceId"] for name in "aab"
    )
    assert first == second != other
    assert len(first.value) == 12
    assert "serviceId" not in hello.hello_reply(asked({"hello": 1, "loadBalanced": False}))


@pytest.mark.parametrize("document", [{"ok": 0.0, "errmsg": "no"}, {}, {"ok": "1"}])
def test_a_server_that_refuses_hello(document: dict[str, Any]) -> None:
    answer = messages.msg(document, request_id=1)
    with pytest.raises(ProtocolError, match="refuses hello"):
        hello.server_hello(answer, reply_body(answer))


def test_a_server_that_says_something_twice() -> None:
    twice = b"\x01ok\0" + struct.pack("<d", 1.0)
    body = struct.pack("<i", 5 + 2 * len(twice)) + 2 * twice + b"\0"
    data = HEADER.pack(21 + len(body), 1, 1, MSG) + bytes(5) + body
    with pytest.raises(ProtocolError, match="twice"):
        hello.server_hello(data, reply_body(data))
    with pytest.raises(ProtocolError, match="cannot be read"):
        hello.allowed_databases(data, reply_body(data), lambda name: True)
    message = parse(data.replace(HEADER.pack(21 + len(body), 1, 1, MSG), HEADER.pack(21 + len(body), 1, 0, MSG)))
    assert isinstance(message, Msg)
    for read in (hello.hello_name, hello.asked_fields, lambda one: hello.authenticated(one, "alice")):
        with pytest.raises(ProtocolError, match="twice"):
            read(message)


@pytest.mark.parametrize("user", [None, "alice", "CN=alice"])
def test_authentication_by_certificate_has_happened_already(user: str | None) -> None:
    document: dict[str, Any] = {"authenticate": 1, "mechanism": "MONGODB-X509", "$db": "$external"}
    if user is not None:
        document["user"] = user
    answer = hello.authenticated(asked(document), "alice")
    assert answer == {"dbname": "$external", "user": user or "alice", "ok": 1.0}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"authenticate": 1, "mechanism": "MONGODB-X509", "user": "bob"}, "not for the one named"),
        ({"authenticate": 1, "mechanism": "MONGODB-CR", "user": "alice"}, "no password is asked"),
        ({"saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": b""}, "no password is asked"),
        ({"saslContinue": 1, "payload": b""}, "no password is asked"),
    ],
)
def test_other_authentication_fails_in_words(document: dict[str, Any], why: str) -> None:
    answer = hello.authenticated(asked({**document, "$db": "admin"}), "alice")
    assert (answer["ok"], answer["code"], answer["codeName"]) == (0.0, 18, "AuthenticationFailed")
    assert why in answer["errmsg"]


# --- lists of databases


def listed(document: dict[str, Any], seen: set[str]) -> dict[str, Any]:
    answer = messages.msg(document, request_id=1)
    return said(messages.msg(hello.allowed_databases(answer, reply_body(answer), seen.__contains__), request_id=1))


def test_only_databases_that_may_be_used_are_listed() -> None:
    rows = [{"name": name, "sizeOnDisk": size, "empty": False} for name, size in (("a", 1 << 21), ("b", 5), ("c", 7))]
    found = listed({"databases": rows, "totalSize": 99, "totalSizeMb": 9, "ok": 1.0}, {"a", "c"})
    assert found == {"databases": [rows[0], rows[2]], "totalSize": (1 << 21) + 7, "totalSizeMb": 2, "ok": 1.0}
    assert listed({"databases": [{"name": "a"}, {"name": "b"}], "ok": 1.0}, {"b"}) == {
        "databases": [{"name": "b"}], "ok": 1.0
    }  # fmt: skip
    assert listed({"ok": 0.0, "errmsg": "no"}, set()) == {"ok": 0.0, "errmsg": "no"}


def test_a_name_that_no_database_can_have_is_not_asked_about() -> None:
    long = "x" * 64
    assert listed({"databases": [{"name": long}, {"name": "a"}], "ok": 1.0}, {long, "a"})["databases"] == [
        {"name": "a"}
    ]


@pytest.mark.parametrize("rows", [["x"], [{}], [{"name": 1}]])
def test_a_list_that_cannot_be_read_is_not_passed_on(rows: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        listed({"databases": rows, "ok": 1.0}, set())


# --- replies


def passed(replies: Replies, data: bytes, sizes: list[int]) -> bytes:
    out = b""
    for size in [*sizes, len(data)]:
        out += b"".join(map(bytes, replies.receive(data[:size])))
        data = data[size:]
    return out


@given(st.lists(st.integers(1, 50), max_size=20))
def test_every_split_of_a_reply_passes(sizes: list[int]) -> None:
    data = op_msg({"ok": 1.0, "rows": list(range(20))}, 100, response_to=7)
    replies = Replies()
    replies.expect(7)
    assert passed(replies, data, sizes) == data
    assert replies.done
    replies.expect(8, keep=10_000)
    data = op_msg({"ok": 1.0}, 101, response_to=8)
    assert passed(replies, data, sizes) == b""
    assert replies.done
    assert replies.whole() == data


@given(st.lists(st.integers(1, 50), max_size=20))
def test_a_stream_of_replies_ends_with_its_last(sizes: list[int]) -> None:
    data = b"".join(
        op_msg({"n": n}, 100 + n, response_to=7 if n == 0 else 99 + n, flags=2 if n < 3 else 0) for n in range(4)
    )
    replies = Replies()
    replies.expect(7)
    assert passed(replies, data, sizes) == data
    assert replies.done
    assert not replies.begun


def test_a_reply_that_has_begun_is_known() -> None:
    replies = Replies()
    replies.expect(7)
    data = op_msg({"ok": 1.0}, 100, response_to=7)
    replies.receive(data[:19])
    assert not replies.begun
    replies.receive(data[19:30])
    assert replies.begun


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (op_msg({}, response_to=9), "answers request 9, not 7"),
        (op_msg({}, response_to=7) + b"x", "without being asked"),
        (HEADER.pack(20, 1, 7, MSG) + bytes(4), "reply of 20 bytes"),
        (HEADER.pack(-1, 1, 7, MSG) + bytes(4), "reply of -1 bytes"),
        (HEADER.pack(messages.MAX_REPLY + 1, 1, 7, MSG) + bytes(4), "limit"),
        (HEADER.pack(36, 1, 7, 1) + bytes(20), "kind 1"),
    ],
)
def test_a_server_that_breaks_the_protocol(data: bytes, why: str) -> None:
    replies = Replies()
    replies.expect(7)
    with pytest.raises(ProtocolError, match=why):
        replies.receive(data)


@given(st.lists(st.integers(1, 50), max_size=20))
def test_replies_that_nobody_wanted_are_thrown_away(sizes: list[int]) -> None:
    """FerretDB answers what says that it wants no answer."""
    replies = Replies()
    for request in (5, 6):
        replies.unwanted(request)
    replies.expect(7)
    wanted = op_msg({"ok": 1.0}, 102, response_to=7)
    one, other = (op_msg({"n": 1}, 100 + n, response_to=n, flags=2) for n in (5, 6))
    assert passed(replies, one + wanted + other, sizes) == wanted
    assert replies.done
    with pytest.raises(ProtocolError, match="without being asked"):
        replies.receive(one)


def test_a_reply_to_another_request_than_those() -> None:
    replies = Replies()
    for request in range(MAX_UNWANTED + 1):
        replies.unwanted(request)
    with pytest.raises(ProtocolError, match="answers request 0"):
        replies.receive(op_msg({}, response_to=0))


def test_what_is_kept_is_bounded_and_one_reply() -> None:
    for data, why in (
        (op_msg({"a": "x" * 100}, response_to=7), "limit 100"),
        (op_msg({}, response_to=7, flags=2), "goes on"),
    ):
        replies = Replies()
        replies.expect(7, keep=100)
        with pytest.raises(ProtocolError, match=why):
            replies.receive(data)


def test_a_first_message_is_bounded_as_it_is_when_unpacked() -> None:
    """Ten kilobytes held the proxy for most of a second, from anybody with a certificate."""
    plain = op_msg(HELLO | {"padding": "x" * MAX_OPENING})[16:]
    squeezed = struct.pack("<iiB", MSG, len(plain), 2) + zlib.compress(plain)
    step = certified().receive(HEADER.pack(16 + len(squeezed), 7, 0, messages.COMPRESSED) + squeezed)
    assert isinstance(step, Closed)
    assert "when unpacked, limit 16384" in step.reason
