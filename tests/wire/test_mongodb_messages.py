"""MongoDB's messages: framing, sections, checksums, compression."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.mongodb import bson, messages
from monoport.wire.mongodb.messages import (
    COMPRESSED,
    HEADER,
    MAX_MESSAGE,
    MAX_UNPACKED,
    MSG,
    QUERY,
    Framer,
    Msg,
    ProtocolError,
    Query,
    crc32c,
    parse,
    reply_body,
)

PING = {"ping": 1, "$db": "app"}


def op(body: bytes, opcode: int = MSG, request_id: int = 7, response_to: int = 0) -> bytes:
    return HEADER.pack(16 + len(body), request_id, response_to, opcode) + body


def msg(*sections: bytes, flags: int = 0) -> bytes:
    return op(struct.pack("<I", flags) + b"".join(sections))


def body(document: dict[str, Any]) -> bytes:
    return b"\0" + bson.encode(document)


def sequence(name: bytes, *documents: bytes, size: int | None = None) -> bytes:
    inside = name + b"\0" + b"".join(documents)
    return b"\1" + struct.pack("<i", 4 + len(inside) if size is None else size) + inside


def summed(data: bytes) -> bytes:
    size, *rest = HEADER.unpack_from(data)
    flagged = HEADER.pack(size + 4, *rest) + struct.pack("<I", 1) + data[20:]
    return flagged + struct.pack("<I", crc32c(flagged))


def packed(data: bytes, compressor: int, squeeze: Callable[[bytes], bytes] = bytes, size: int | None = None) -> bytes:
    inside = data[16:]
    head = struct.pack("<iiB", MSG, len(inside) if size is None else size, compressor)
    return op(head + squeeze(inside), COMPRESSED)


def test_a_message_with_everything() -> None:
    one, two = bson.encode({"n": 1}), bson.encode({"n": 2})
    whole = msg(body({"insert": "c", "$db": "app"}), sequence(b"documents", one, two), flags=1 << 16)
    found = parse(whole)
    assert isinstance(found, Msg)
    assert found.request_id == 7
    assert found.flags == messages.EXHAUST_ALLOWED
    assert found.answered
    assert [one.name for one in found.sections] == ["documents"]
    assert [whole[a:b] for a, b in found.sections[0].documents] == [one, two]
    assert whole[found.body[0] : found.body[1]] == bson.encode({"insert": "c", "$db": "app"})


def test_the_body_may_come_last() -> None:
    found = parse(msg(sequence(b"documents", bson.encode({})), body(PING), flags=2))
    assert isinstance(found, Msg)
    assert not found.answered


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (op(bytes(4)), "OP_MSG of 20 bytes"),
        (op(b"", 1), "kind 1"),
        (op(b"", 2001), "kind 2001"),
        (op(b"", 2002), "kind 2002"),
        (op(b"", 2013, response_to=3), "says it is a response"),
        (msg(body(PING), flags=4), "unknown flags 0x4"),
        (msg(body(PING), body(PING)), "two bodies"),
        (msg(sequence(b"documents", bson.encode({}))), "without a body"),
        (msg(b"\2" + bson.encode(PING)), "unknown kind 2"),
        (msg(body(PING), sequence(b"a"), sequence(b"a")), "of one name"),
        (msg(body(PING), *(sequence(b"%d" % n) for n in range(3))), "more than 2"),
        (msg(body(PING), b"\1\0\0"), "without its length"),
        (msg(body(PING), sequence(b"a", size=100)), "says 100 bytes"),
        (msg(body(PING), sequence(b"a", size=4)), "says 4 bytes"),
        (msg(body(PING), b"\1\5\0\0\0a"), "end of its name"),
        (msg(body(PING), sequence(b"a", b"\5\0\0")), "3 bytes where a document begins"),
        (msg(b"\0" + bson.encode(PING)[:-1]), "document says"),
        (op(bytes(4) + b"admin.$cmd", QUERY), "without a collection's end"),
        (op(bytes(4) + b"a\0" + bytes(8) + bson.encode({}) + b"x", QUERY), "where a document begins"),
        (op(b"123", COMPRESSED), "OP_COMPRESSED of 19"),
        (packed(msg(body(PING)), 0, size=-1), "of -1 bytes when unpacked"),
        (packed(msg(body(PING)), 0, size=MAX_MESSAGE), "when unpacked, limit"),
        (packed(msg(body(PING)), 0, size=3), "says 3 bytes"),
        (packed(msg(body(PING)), 1), "compressor 1, which was not offered"),
        (packed(msg(body(PING)), 2), "cannot be unpacked"),
        (packed(msg(body(PING)), 2, zlib.compress, size=3), "does not end where"),
        (packed(msg(body(PING)), 2, lambda data: zlib.compress(data) + b"x"), "does not end where"),
        (packed(msg(body(PING)), 2, zlib.compress, size=5000), "says 5000 bytes"),
        (op(struct.pack("<iiB", COMPRESSED, 0, 0), COMPRESSED), "kind 2012"),
        (summed(msg(body(PING)))[:-1] + b"\0", "wrong checksum"),
    ],
)
def test_what_breaks_the_protocol(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why.replace("(", r"\(")):
        parse(data)


@pytest.mark.parametrize(("compressor", "squeeze"), [(0, bytes), (2, zlib.compress)])
def test_compressed_although_nobody_offered_it(compressor: int, squeeze: Callable[[bytes], bytes]) -> None:
    plain = msg(body(PING))
    found = parse(packed(plain, compressor, squeeze))
    assert isinstance(found, Msg)
    assert found.data == plain


def test_a_bomb_is_not_unpacked() -> None:
    bomb = packed(op(bytes(20_000_000)), 2, zlib.compress, size=1000)
    with pytest.raises(ProtocolError, match="does not end where"):
        parse(bomb)


def test_little_that_unpacks_to_much_is_not_unpacked_either() -> None:
    """What an agent keeps of large requests is counted by the size that they come with, here a few kilobytes."""
    honest = packed(op(bytes(MAX_UNPACKED)), 2, zlib.compress)
    assert len(honest) < MAX_UNPACKED / 100
    with pytest.raises(ProtocolError, match=f"when unpacked, limit {MAX_UNPACKED}"):
        parse(honest)


def test_checksums() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    good = summed(msg(body(PING)))
    found = parse(good)
    assert isinstance(found, Msg)
    assert found.data == good
    assert good[found.body[0] : found.body[1]] == bson.encode(PING)
    with pytest.raises(ProtocolError, match="with a checksum, limit"):
        parse(summed(msg(body({"ping": "x" * messages.MAX_SUMMED, "$db": "a"}))))


def test_too_many_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_BATCH", 3)
    empty = bson.encode({})
    assert parse(msg(body(PING), sequence(b"a", *[empty] * 3)))
    with pytest.raises(ProtocolError, match="more than 3 documents"):
        parse(msg(body(PING), sequence(b"a", *[empty] * 4)))


def test_queries() -> None:
    hello = bson.encode({"isMaster": 1})
    found = parse(op(bytes(4) + b"admin.$cmd\0" + bytes(8) + hello, QUERY))
    assert isinstance(found, Query)
    assert (found.collection, found.data[slice(*found.body)]) == ("admin.$cmd", hello)
    assert parse(op(bytes(4) + b"admin.$cmd\0" + bytes(8) + hello + bson.encode({"a": 1}), QUERY))


@given(st.lists(st.integers(1, 60), max_size=30))
def test_every_split_gives_the_same_messages(sizes: list[int]) -> None:
    wanted = [msg(body({"ping": n, "$db": "a"})) for n in range(4)]
    stream, framer, found = b"".join(wanted), Framer(), []
    for size in [*sizes, len(stream)]:
        whole = framer.receive(stream[:size])
        stream = stream[size:]
        while whole is not None:
            found.append(whole)
            whole = framer.take()
    assert found == wanted
    assert (framer.waiting, framer.size) == (0, 0)


@pytest.mark.parametrize("size", [-1, 0, 15, MAX_MESSAGE + 1, 1 << 30])
def test_no_length_is_waited_for_that_cannot_be(size: int) -> None:
    framer = Framer()
    assert framer.receive(struct.pack("<i", size)[:3]) is None
    with pytest.raises(ProtocolError, match=f"message of {size} bytes"):
        framer.receive(struct.pack("<i", size)[3:])


def test_answers_are_in_the_form_of_the_question() -> None:
    asked = parse(msg(body(PING)))
    said = messages.answer({"ok": 1.0}, asked, 9)
    assert HEADER.unpack_from(said) == (len(said), 9, 7, MSG)
    assert said[slice(*reply_body(said))] == bson.encode({"ok": 1.0})
    old = parse(op(bytes(4) + b"admin.$cmd\0" + bytes(8) + bson.encode({"isMaster": 1}), QUERY))
    said = messages.answer({"ok": 1.0}, old, 9)
    assert HEADER.unpack_from(said) == (len(said), 9, 7, messages.REPLY)
    assert said[36:] == bson.encode({"ok": 1.0})
    with pytest.raises(ProtocolError, match="kind 1"):
        reply_body(said)
    with pytest.raises(ProtocolError, match="document says"):
        reply_body(msg(b"\0\6\0\0\0\0"))


@given(st.binary(max_size=200), st.sampled_from([MSG, QUERY, COMPRESSED]))
def test_garbage_is_refused_in_words(garbage: bytes, opcode: int) -> None:
    why = ""
    try:
        assert parse(op(garbage, opcode)).request_id == 7
    except ProtocolError as error:
        why = str(error)
    assert why.isprintable()
