"""MySQL's compressed packets: every split, and lengths that lie."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.mysql.compression import BLOCK, HEAD, HOLD, OUT, Deflater, Inflater, deflated
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


def packet(content: bytes) -> bytes:
    """An ordinary packet."""
    return len(content).to_bytes(3, "little") + b"\1" + content


def cut(data: bytes, places: list[int]) -> list[bytes]:
    found = sorted({min(place, len(data)) for place in places})
    return [data[start:stop] for start, stop in zip([0, *found], [*found, len(data)], strict=True)]


def contents(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of every compressed packet in `data`."""
    while data:
        size, number, plain = int.from_bytes(data[:3], "little"), data[3], int.from_bytes(data[4:7], "little")
        sent, data = data[7 : 7 + size], data[7 + size :]
        assert len(sent) == size
        yield number, zlib.decompress(sent) if plain else sent


def check_pieces(blocks: Iterable[bytes]) -> None:
    """Fail where the head of an ordinary packet is in two blocks, or a packet is in more than two."""
    left = pieces = 0
    for block in blocks:
        place = 0
        while place < len(block):
            if not left:
                assert place + HEAD <= len(block)
                left, pieces = HEAD + int.from_bytes(block[place : place + 3], "little"), 0
            step = min(left, len(block) - place)
            left, place, pieces = left - step, place + step, pieces + 1
            assert pieces <= 2
    assert not left


PACKETS = st.lists(st.binary(max_size=300), max_size=6)
CUTS = st.lists(st.integers(0, 900), max_size=8)


@given(PACKETS, CUTS, CUTS, st.booleans())
def test_what_is_sent_is_read_whatever_the_split(
    parts: list[bytes], read: list[int], sent: list[int], long: bool
) -> None:
    plain = b"".join(packet(part * (300 if long else 1)) for part in parts)
    deflater = Deflater()
    data = b"".join(deflater.add(piece) for piece in cut(plain, sent))
    check_pieces(content for _, content in contents(data))
    assert inflated(Inflater(), *cut(data, read)) == plain


def test_a_short_packet_waits_to_be_whole_octet_by_octet() -> None:
    plain = packet(b"abc") + packet(b"") + packet(b"x" * 60)
    deflater = Deflater()
    blocks = [content for place in range(len(plain)) for _, content in contents(deflater.add(plain[place : place + 1]))]
    assert blocks == [packet(b"abc"), packet(b""), packet(b"x" * 60)]


def test_a_long_packet_is_in_two_however_it_comes_and_numbers_wrap() -> None:
    before, long, behind = packet(b"abc"), packet(bytes(3 * BLOCK)), packet(b"x" * 60)
    plain = before + long + behind
    for step in (1000, 65_536, len(plain)):
        deflater = Deflater(254)
        data = b"".join(deflater.add(plain[place : place + step]) for place in range(0, len(plain), step))
        blocks = list(contents(data))
        assert [number for number, _ in blocks] == [254, 255, 0, 1]
        assert [len(content) for _, content in blocks[::3]] == [len(before), len(behind)]
        assert b"".join(content for _, content in blocks) == plain
        check_pieces(content for _, content in blocks)
        inflater = Inflater()
        assert inflated(inflater, data) == plain
        assert (inflater.number, deflater.number) == (1, 2)


def test_what_waits_of_a_packet_is_bounded() -> None:
    deflater = Deflater()
    begun = packet(bytes(2 * HOLD))[: HOLD + 1]
    assert deflater.add(begun[:-1]) == b""
    sent = deflater.add(begun[-1:])
    rest = 2 * HOLD + HEAD - len(begun)
    assert sent.endswith(compressed(b"", 0, 1, rest))
    assert inflated(Inflater(), sent) == begun
    assert deflater.add(bytes(rest)) == bytes(rest)


@pytest.mark.parametrize("short", range(-1, HEAD + 2))
def test_packets_share_a_block_as_far_as_it_goes(short: int) -> None:
    plain = packet(bytes(BLOCK - HEAD - short)) + packet(b"y" * 500)
    sizes = [len(content) for _, content in contents(Deflater().add(plain))]
    first = BLOCK - short
    assert sizes == ([first, 504] if short >= 0 else [BLOCK, 1, 504])


def test_short_content_is_not_compressed() -> None:
    assert deflated(b"x" * 49, 7) == compressed(b"x" * 49, 0, 7)
    assert deflated(b"x" * 50, 7)[4:7] == (50).to_bytes(3, "little")


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
