"""Frames: whole, byte by byte, and everything that is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.frame import HEADER, MAX_FRAME, FrameError, body, decode, encode, size

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=6)


@given(objects, st.binary(max_size=30))
def test_a_frame_is_read_as_it_was_written_and_leaves_the_rest(obj, rest):
    data = encode(obj)
    assert decode(data + rest) == (obj, len(data))
    assert decode(memoryview(data + rest)) == (obj, len(data))


@given(objects)
def test_every_shorter_piece_asks_for_more(obj):
    data = encode(obj)
    assert all(decode(data[:length]) is None for length in range(len(data)))


@given(st.binary(max_size=60))
def test_anything_else_is_an_error_or_asks_for_more(data):
    try:
        found = decode(data)
    except FrameError:
        return
    assert found is None or decode(encode(found[0])) == (found[0], len(encode(found[0])))


@pytest.mark.parametrize("length", [0, 1, MAX_FRAME + 1, 2**32 - 1])
def test_lengths_out_of_bounds_fail_before_a_byte_of_body(length):
    with pytest.raises(FrameError, match="limit"):
        size(length.to_bytes(HEADER, "big"))
    with pytest.raises(FrameError, match="limit"):
        decode(length.to_bytes(HEADER, "big"))


def test_an_object_that_is_too_large_is_not_written():
    with pytest.raises(FrameError, match="limit"):
        encode({"x": "y" * MAX_FRAME})
    assert len(encode({"x": "y" * (MAX_FRAME - 8)})) == HEADER + MAX_FRAME


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"12",
        b'"text"',
        b"{",
        b"{}x",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_object(text):
    with pytest.raises(FrameError):
        body(text)


def test_text_beyond_ascii_stays_itself():
    assert json.loads(encode({"name": "Jürgen"})[HEADER:]) == {"name": "Jürgen"}
