"""MySQL's compressed packets: every split, and lengths that lie."""

from __future__ import annotations

import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.mysql.compression import BLOCK, OUT, Inflater, deflated
from monoport.wire.mysql.packets import ProtocolError


def compressed(sent: bytes, size: int, number: int = 0, length: int | None = None) -> bytes:
    head = (len(sent) if length is None else length).to_bytes(3, "little")
    return head + bytes((number,)) + size.to_bytes(3, "little") + sent


def inflated(inflater: Inflater, *pieces: bytes) -> bytes:
    found = b""
    for piece in pieces:
        inflater.add(piece)
        while content := inflater.next():
            assert len(content) <= OUT
            found += content
    return found


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(0, 900), max_size=8), st.booleans())
def test_what_is_sent_is_read_whatever_the_split(parts: list[bytes], cuts: list[int], long: bool) -> None:
    number, data = 0, b""
    parts = [part * (300 if long else 1) for part in parts]
    for part in parts:
        packets, number = deflated(part, number)
        data += packets
    places = sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]
    assert inflated(Inflater(), *pieces) == b"".join(parts)


def test_long_content_goes_into_several_packets_and_numbers_wrap() -> None:
    packets, number = deflated(bytes(3 * BLOCK + 1), 254)
    assert number == 2
    inflater = Inflater()
    assert inflated(inflater, packets) == bytes(3 * BLOCK + 1)
    assert inflater.number == 1


def test_short_content_is_not_compressed() -> None:
    assert deflated(b"x" * 49, 7) == (compressed(b"x" * 49, 0, 7), 8)
    assert deflated(b"x" * 50, 7)[0][4:7] == (50).to_bytes(3, "little")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (compressed(b"nonsense", 100), "compressed packet: "),
        (compressed(zlib.compress(b"x" * 100), 99), "holds more than it says"),
        (compressed(zlib.compress(b"x" * 100), 101), "holds less than it says"),
        (compressed(zlib.compress(bytes(1 << 20)), 1000), "holds more than it says"),
        (compressed(zlib.compress(b"x" * 100) + b"rest", 100), "holds more than it says"),
        (compressed(zlib.compress(b"x" * 100)[:-4], 100), "holds less than it says"),
        (compressed(b"", 5), "holds less than it says"),
    ],
)
def test_lengths_that_lie(data: bytes, says: str) -> None:
    for pieces in ([data], [data[place : place + 1] for place in range(len(data))]):
        with pytest.raises(ProtocolError, match=says):
            inflated(Inflater(), *pieces)


def test_empty_packets_are_passed_over() -> None:
    assert inflated(Inflater(), compressed(b"", 0) * 3 + compressed(b"x", 0)) == b"x"


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_garbage(pieces: list[bytes]) -> None:
    with suppress(ProtocolError):  # and nothing else
        assert len(inflated(Inflater(), *pieces)) <= 1 << 24
