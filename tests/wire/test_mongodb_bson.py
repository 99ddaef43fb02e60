"""BSON, against PyMongo's own codec and against bytes that lie."""

from __future__ import annotations

import datetime
import re
import struct
from typing import Any

import bson as pymongo_bson
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.mongodb import bson
from monoport.wire.mongodb.bson import BsonError, Raw

EVERYTHING: dict[str, Any] = {
    "double": 1.5, "string": "text\N{SNOWMAN}", "document": {"a": 1}, "array": [1, "two"], "binary": Binary(b"b", 128),
    "id": ObjectId(b"123456789012"), "true": True, "false": False, "date": datetime.datetime.now(datetime.UTC),
    "null": None, "regex": Regex("a.*", "i"), "code": Code("f()"), "scoped": Code("f()", {"x": 1}), "int": 7,
    "timestamp": Timestamp(1, 2), "long": Int64(7), "decimal": Decimal128("1.1"), "min": MinKey(), "max": MaxKey(),
    "reference": DBRef("c", 1),
}  # fmt: skip
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | NAMES
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def whole(data: bytes) -> list[bson.Element]:
    return bson.elements(data, 0, len(data))


def document(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return struct.pack("<i", 5 + len(body)) + body + b"\0"


def test_every_type_is_stepped_over_where_it_ends() -> None:
    data = pymongo_bson.encode(EVERYTHING)
    found = whole(data)
    assert [one.name for one in found] == list(EVERYTHING)
    assert found[-1].end == len(data) - 1
    for one in found:  # each value, put into a document of its own, is the one that it was
        alone = bson.encode({one.name: bson.raw(data, one)})
        assert pymongo_bson.encode(pymongo_bson.decode(alone)) == alone


def test_old_types_are_known_too() -> None:
    pointer = b"\x0cp\0" + struct.pack("<i", 2) + b"c\0" + bytes(12)
    assert [one.kind for one in whole(document(pointer, b"\x06u\0", b"\x0es\0\2\0\0\0x\0"))] == [0x0C, 0x06, 0x0E]


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_what_we_write_pymongo_reads(made: dict[str, Any]) -> None:
    data = bson.encode(made)
    assert pymongo_bson.decode(data) == made
    assert [one.name for one in whole(data)] == list(made)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_what_pymongo_writes_we_read(made: dict[str, Any]) -> None:
    data = pymongo_bson.encode(made)
    found = bson.fields(data, 0, len(data))
    assert list(found) == list(made)
    for name, value in made.items():
        if isinstance(value, str):
            assert bson.text(data, found[name]) == value
        elif isinstance(value, bytes):
            assert bson.binary(data, found[name]) == value
        elif isinstance(value, bool | int | float):
            assert bson.number(data, found[name]) == value


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), st.data())
def test_no_spoiled_document_is_read_beyond_its_end(made: dict[str, Any], draw: st.DataObject) -> None:
    data = bytearray(bson.encode(made))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    found, why = [], ""
    try:
        found = whole(bytes(data))
    except BsonError as error:
        why = str(error)
    assert why.isprintable()
    assert all(0 < one.start <= one.end < len(data) for one in found)


@pytest.mark.parametrize("value", ["x", {"a": 1}, [1], b"b", Code("f()"), Code("f", {"a": 1}), Regex("a", "b"), 1.5, 1])
def test_a_document_that_is_cut_anywhere_is_none(value: Any) -> None:
    data = pymongo_bson.encode({"f": value})
    for end in range(len(data)):
        with pytest.raises(BsonError):
            whole(data[:end])
        if end > 5:  # with a length that says so
            with pytest.raises(BsonError):
                whole(struct.pack("<i", end) + data[4 : end - 1] + b"\0")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes where"),
        (b"\5\0\0\0\1", "does not end with NUL"),
        (b"\4\0\0\0\0", "says 4 bytes"),
        (b"\xff\xff\xff\xff\0", "says -1 bytes"),
        (b"\6\0\0\0\0", "says 6 bytes, there are 5"),
        (b"\5\0\0\0\0\0", "bytes behind the end"),
        (document(b"\x10"), "without the end of its name"),
        (document(b"\x10\xff\0aaaa"), "not UTF-8"),
        (document(b"\x20a\0aaaa"), "unknown type 0x20"),
        (document(b"\x08a\0\2"), "neither true nor false"),
        (document(b"\x01a\0aaa"), "longer than its document"),
        (document(b"\x08a\0"), "longer than its document"),
        (document(b"\x02a\0\0\0"), "without its length"),
        (document(b"\x02a\0\0\0\0\0\0"), "string says 0 bytes"),
        (document(b"\x02a\0\xff\xff\xff\xff\0"), "string says -1 bytes"),
        (document(b"\x02a\0\3\0\0\0a\0"), "string says 3 bytes"),
        (document(b"\x02a\0\2\0\0\0ab"), "does not end there"),
        (document(b"\x05a\0\xff\xff\xff\xff\0"), "binary of -1"),
        (document(b"\x05a\0\1\0\0\0\0"), "longer than its document"),
        (document(b"\x0fa\0\1\0\0\0\0"), "code with scope of 1"),
        (document(b"\x0ba\0abc"), "regular expression"),
        (document(b"\x0ba\0abc\0d"), "regular expression"),
        (document(b"\x03a\0\6\0\0\0\0"), "document says 6"),
        (document(b"\x04a\0\5\0\0\0\1"), "does not end with NUL"),
        (document(b"\x0ca\0\2\0\0\0c\0abc"), "longer than its document"),
    ],
)
def test_lengths_that_lie(data: bytes, why: str) -> None:
    with pytest.raises(BsonError, match=re.escape(why)):
        whole(data)


def test_what_is_looked_at_is_bounded() -> None:
    data = bson.encode({str(n): n for n in range(bson.MAX_ELEMENTS + 1)})
    with pytest.raises(BsonError, match="more than 256 elements"):
        whole(data)
    with pytest.raises(BsonError, match="limit 10"):
        bson.size(bytes(100), 0, 100, 10)


def test_depth_costs_nothing_unless_asked_for() -> None:
    data = bson.encode({})
    for _ in range(100_000):
        data = struct.pack("<i", len(data) + 8) + b"\x03a\0" + data + b"\0"
    assert [one.name for one in whole(data)] == ["a"]


def test_a_field_that_comes_twice_is_no_field() -> None:
    with pytest.raises(BsonError, match="twice"):
        bson.fields(document(b"\x0aa\0", b"\x0aa\0"), 0, 11)


def test_numbers_of_every_width() -> None:
    made = {"small": -7, "large": 1 << 40, "float": 1.5, "true": True, "false": False}
    data = pymongo_bson.encode(made)
    assert data == bson.encode(made)
    assert [bson.number(data, element) for element in whole(data)] == [-7, 1 << 40, 1.5, 1, 0]


def test_values_of_another_type_are_refused() -> None:
    data = bson.encode({"n": 1, "s": "a\0b", "u": Raw(bson.STRING, b"\2\0\0\0\xff\0")})
    n, s, u = whole(data)
    for element, why in ((n, "not a string"), (s, "contains NUL"), (u, "not UTF-8")):
        with pytest.raises(BsonError, match=why):
            bson.text(data, element)
    with pytest.raises(BsonError, match="not binary"):
        bson.binary(data, n)
    assert bson.number(data, s) is None
    with pytest.raises(BsonError, match="name contains NUL"):
        bson.encode({"a\0b": 1})
    with pytest.raises(TypeError, match="no BSON for object"):
        bson.encode({"a": object()})
