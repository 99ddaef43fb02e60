"""PROXY headers: whole, at every octet, and everything that is none."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.proxyprotocol import ABSENT, MAX_V1, MAX_V2, V1, V2, Header, ProxyHeaderError, _crc32c, parse

ports = st.integers(0, 65_535)
LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX = 0x11, 0x21, 0x31
V4 = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack(">HH", 40_000, 443)
HELLO = b"\x16\x03\x01\x02\x00\x01"


def binary(command: int, family: int, payload: bytes) -> bytes:
    return V2 + bytes((command, family)) + struct.pack(">H", len(payload)) + payload


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + struct.pack(">H", len(value)) + value


def summed(payload: bytes, family: int = TCP4) -> bytes:
    """A header of this payload with the TLV of its checksum behind it."""
    data = binary(PROXY, family, payload + tlv(3, bytes(4)))
    return data[:-4] + _crc32c(data).to_bytes(4, "big")


def split_everywhere(data: bytes, header: Header) -> None:
    assert all(parse(data[:length]) is None for length in range(len(data)))
    assert parse(data) == header
    assert parse(data + HELLO) == header


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), ports, ports)
def test_version_1_for_ipv4(source, destination, port, other):
    data = f"PROXY TCP4 {source} {destination} {port} {other}\r\n".encode()
    split_everywhere(data, Header((str(source), port), len(data)))


@given(st.ip_addresses(v=6), st.ip_addresses(v=6), ports, ports, st.booleans())
def test_version_1_for_ipv6(source, destination, port, other, long):
    written = source.exploded.upper() if long else source
    data = f"PROXY TCP6 {written} {destination} {port} {other}\r\n".encode()
    split_everywhere(data, Header((str(source.ipv4_mapped or source), port), len(data)))


@given(st.ip_addresses(v=4), ports, st.lists(st.tuples(st.integers(4, 255), st.binary(max_size=20)), max_size=4))
def test_version_2_for_ipv4(source, port, vectors):
    payload = source.packed + bytes(4) + struct.pack(">HH", port, 443)
    data = binary(PROXY, TCP4, payload + b"".join(tlv(kind, value) for kind, value in vectors))
    split_everywhere(data, Header((str(source), port), len(data)))


@given(st.ip_addresses(v=6), ports)
def test_version_2_for_ipv6(source, port):
    data = binary(PROXY, TCP6, source.packed + bytes(16) + struct.pack(">HH", port, 443))
    split_everywhere(data, Header((str(source.ipv4_mapped or source), port), len(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 16) + b"\r\n",
        binary(LOCAL, 0, b""),
        binary(LOCAL, TCP4, V4),
        binary(LOCAL, 0xFF, b"whatever"),  # the family of a LOCAL header is to be ignored
        binary(PROXY, 0, b"whatever"),
        binary(PROXY, UNIX, bytes(216)),
    ],
)
def test_headers_that_name_no_client(data):
    split_everywhere(data, Header(None, len(data)))


def test_a_client_by_ipv4_has_one_text():
    mapped = ipaddress.ip_address("::ffff:192.0.2.1")
    data = binary(PROXY, TCP6, mapped.packed + bytes(20))
    assert parse(data) == Header(("192.0.2.1", 0), len(data))
    text = b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n"
    assert parse(text) == Header(("192.0.2.1", 1), len(text))


@pytest.mark.parametrize(
    "data", [HELLO, b"SSH-2.0-x\r\n", b"PUT / HTTP/1.1\r\n", b"PROXy ", b"\r\n\r\n\r\n", b"\0\0\0\x08"]
)
def test_other_bytes_are_no_header(data):
    assert parse(data) is ABSENT
    assert parse(b"") is None


@given(st.binary(max_size=300), st.sampled_from([b"", V1, V2, V1 + b"TCP4 ", V2 + b"\x21\x11"]))
def test_anything_is_a_header_an_error_absent_or_asks_for_more(rest, start):
    data = start + rest
    try:
        found = parse(data)
    except ProxyHeaderError as wrong:
        found = wrong
    if isinstance(found, ProxyHeaderError):
        assert str(found).isprintable()
        assert data.startswith((V1, V2))
    elif found is None:
        assert len(data) < MAX_V2
    else:
        assert found.size <= len(data)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"TCP4 192.0.2.1 192.0.2.2 1", "4 fields"),
        (b"TCP4 192.0.2.1 192.0.2.2 1 2 3", "6 fields"),
        (b"TCP4  192.0.2.1 192.0.2.2 1 2", "6 fields"),
        (b"TCP4 192.0.2.1 192.0.2.2 1 2 ", "6 fields"),
        (b"TCP4", "1 fields"),
        (b"", "'', which is none"),
        (b"tcp4 192.0.2.1 192.0.2.2 1 2", "'tcp4', which is none"),
        (b"UDP4 192.0.2.1 192.0.2.2 1 2", "'UDP4', which is none"),
        (b"UNKNOWN\0", r"'UNKNOWN\\x00', which is none"),
        (b"TCP4 192.0.2.01 192.0.2.2 1 2", "'192.0.2.01' is no IPv4Address"),
        (b"TCP4 192.0.2.1 192.0.2 1 2", "'192.0.2' is no IPv4Address"),
        (b"TCP4 192.0.2.256 192.0.2.2 1 2", "is no IPv4Address"),
        (b"TCP4 2001:db8::1 2001:db8::2 1 2", "is no IPv4Address"),
        (b"TCP6 192.0.2.1 192.0.2.2 1 2", "is no IPv6Address"),
        (b"TCP6 fe80::1%eth0 fe80::2 1 2", "'fe80::1%eth0' is no IPv6Address"),
        (b"TCP6 \xff::1 ::2 1 2", r"'\\xff::1' is no IPv6Address"),
        (b"TCP4 192.0.2.1 192.0.2.2 01 2", "'01' is no port"),
        (b"TCP4 192.0.2.1 192.0.2.2 1 65536", "'65536' is no port"),
        (b"TCP4 192.0.2.1 192.0.2.2 -1 2", "'-1' is no port"),
        (b"TCP4 192.0.2.1 192.0.2.2 1 ", "'' is no port"),
        (b"TCP4 192.0.2.1 192.0.2.2 1 2\n", r"'2\\n' is no port"),
    ],
)
def test_lines_that_are_not_version_1(line, why):
    with pytest.raises(ProxyHeaderError, match=why):
        parse(V1 + line + b"\r\n" + HELLO)


def test_a_line_without_an_end_is_waited_for_only_so_long():
    line = V1 + b"UNKNOWN " + b"x" * 200
    assert parse(line[: MAX_V1 - 1]) is None
    for data in (line[:MAX_V1], line[: MAX_V1 - 1] + b"\r\n", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n" + HELLO * 20):
        with pytest.raises(ProxyHeaderError, match="107"):
            parse(data)


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"\x11\x11\x00\x0c", "0x11"),
        (b"\x22\x11\x00\x0c", "0x22"),
        (b"\x31\x11\x00\x0c", "0x31"),
        (b"\x21\x12\x00\x0c", "0x12, which are not TCP's"),
        (b"\x21\x22\x00\x24", "0x22, which are not TCP's"),
        (b"\x21\x32\x00\xd8", "0x32, which are not TCP's"),
        (b"\x21\x01\x00\x0c", "0x01, which are not TCP's"),
        (b"\x21\x11\x00\x0b", "27 octets, too short"),
        (b"\x21\x21\x00\x0c", "28 octets, too short"),
        (b"\x21\x31\x00\x0c", "28 octets, too short"),
        (b"\x21\x11\xff\xff", "65551 octets, limit 4096"),
        (b"\x20\x00\x0f\xf1", "4097 octets, limit 4096"),
    ],
)
def test_bad_starts_of_version_2_fail_before_the_rest_has_come(start, why):
    with pytest.raises(ProxyHeaderError, match=why):
        parse(V2 + start)


def test_the_largest_header_is_taken():
    data = binary(PROXY, TCP4, V4 + tlv(4, bytes(MAX_V2 - 16 - 12 - 3)))
    assert len(data) == MAX_V2
    assert parse(data[:-1]) is None
    assert parse(data) == Header(("192.0.2.1", 40_000), MAX_V2)


@pytest.mark.parametrize(
    "vectors", [b"\x04", b"\x04\x00", b"\x04\x00\x01", tlv(4, b"abc")[:-1], tlv(4, b"abc") + b"\0"]
)
def test_tlvs_stay_within_the_header(vectors):
    with pytest.raises(ProxyHeaderError, match="goes beyond"):
        parse(binary(PROXY, TCP4, V4 + vectors) + HELLO)


def test_a_checksum_is_checked():
    assert _crc32c(b"123456789") == 0xE3069283  # the check value that catalogues of CRCs give
    data = summed(V4 + tlv(1, b"h2"))
    split_everywhere(data, Header(("192.0.2.1", 40_000), len(data)))
    for position in (16, 25, len(data) - 1):
        spoilt = bytearray(data)
        spoilt[position] ^= 1
        with pytest.raises(ProxyHeaderError, match="checksum is wrong"):
            parse(bytes(spoilt))
    for vectors in (tlv(3, b"abc"), tlv(3, b"abcde")):
        with pytest.raises(ProxyHeaderError, match="twice or has not 4"):
            parse(binary(PROXY, TCP4, V4 + vectors))
    once = summed(V4 + tlv(3, bytes(4)))  # the first of two is looked at first, and is wrong
    with pytest.raises(ProxyHeaderError, match="checksum"):
        parse(once)
