"""The PROXY protocol, versions 1 and 2: how a load balancer says for whom it has connected.

Belongs here: the header at the very beginning of a connection, read strictly. Does not: from whom one is believed and
how long is waited for it (net), and what the bytes behind it mean (routing).
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

V1 = b"PROXY "
V2 = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_V1 = 107  # octets of the longest line that version 1 can need, CRLF included: section 2.1
# A header with addresses of Unix sockets has 232 octets, without TLVs; certificates of the balancer's own clients can
# come in TLVs of about 2 KiB. Version 2 could say 65 551.
MAX_V2 = 4096

_FIXED = 16  # octets of version 2 before the addresses: signature, version and command, family, length
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and its two commands
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31  # address family and transport
_ADDRESSES = {_TCP4: 12, _TCP6: 36, _UNIX: 216}  # octets of both addresses, and ports
_CRC32C = 0x03  # type of the TLV that holds the header's checksum
_TEXT: dict[bytes, type[IPv4Address | IPv6Address]] = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}").fullmatch


class ProxyHeaderError(ValueError):
    """A PROXY header that cannot be read; the message is one safe line for a log."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a connection's first bytes say of whom it was made for.

    source: the client's address, in canonical text, and port; None where the header names none (UNKNOWN, LOCAL, a
    Unix socket): the connection is the balancer's own. size: octets of the header, 0 if the bytes begin otherwise.
    """

    source: tuple[str, int] | None
    size: int


ABSENT = Header(None, 0)


def parse(data: bytes) -> Header | None:
    """Read the PROXY header at the start of a connection's bytes.

    Args:
        data: everything received so far; may go on behind the header.
    Returns:
        the header, ABSENT where the bytes begin otherwise, or None while more octets are needed.
    Raises:
        ProxyHeaderError: it begins like a header and cannot become one within MAX_V1 or MAX_V2 octets.
    Source: HAProxy, doc/proxy-protocol.txt, sections 2.1 and 2.2.
    """
    if data.startswith(V2):
        return _binary(data)
    if data.startswith(V1):
        return _text(data)
    return None if V1.startswith(data) or V2.startswith(data) else ABSENT


def _text(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise ProxyHeaderError(f"PROXY header without its end in {MAX_V1} octets, the limit")
        return None
    fields = data[len(V1) : end].split(b" ")
    if fields[0] == b"UNKNOWN":  # whatever follows is to be ignored
        return Header(None, end + 2)
    if fields[0] not in _TEXT:
        raise ProxyHeaderError(f"PROXY header of {_shown(fields[0])}, which is none of TCP4, TCP6 and UNKNOWN")
    if len(fields) != 5:
        raise ProxyHeaderError(f"PROXY header with {len(fields)} fields where 5 are due")
    family = _TEXT[fields[0]]
    source, _ = [_address(family, field) for field in fields[1:3]]
    port, _ = [_port(field) for field in fields[3:5]]
    return Header((source, port), end + 2)


def _address(family: type[IPv4Address | IPv6Address], field: bytes) -> str:
    try:
        if b"%" in field:  # a zone, which means something on the balancer only
            raise ValueError
        return _canonical(family(field.decode("ascii")))
    except ValueError:
        raise ProxyHeaderError(f"PROXY header: {_shown(field)} is no {family.__name__}") from None


def _canonical(address: IPv4Address | IPv6Address) -> str:
    """One client has one text, whether the balancer saw it by IPv4 or by a socket for both."""
    return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else str(address)


def _port(field: bytes) -> int:
    if not _PORT(field) or int(field) > 65_535:
        raise ProxyHeaderError(f"PROXY header: {_shown(field)} is no port")
    return int(field)


def _shown(field: bytes) -> str:
    return ascii(field[:40].decode("latin-1"))


def _binary(data: bytes) -> Header | None:
    if len(data) < _FIXED:
        return None
    command, family, size = data[12], data[13], _FIXED + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"PROXY header of version and command 0x{command:02x}, which are not known")
    if size > MAX_V2:
        raise ProxyHeaderError(f"PROXY header of {size} octets, limit {MAX_V2}")
    # LOCAL is the balancer's own connection, a health check: the family does not count then.
    named = command == _PROXY and family != _UNSPECIFIED
    if named and family not in _ADDRESSES:
        raise ProxyHeaderError(f"PROXY header of family and transport 0x{family:02x}, which are not TCP's")
    block = _FIXED + _ADDRESSES[family] if named else size
    if size < block:
        raise ProxyHeaderError(f"PROXY header of {size} octets, too short for its addresses")
    if len(data) < size:
        return None
    _check_vectors(data[:size], block)
    if not named or family == _UNIX:
        return Header(None, size)
    if family == _TCP4:
        return Header((_canonical(IPv4Address(data[16:20])), int.from_bytes(data[24:26], "big")), size)
    return Header((_canonical(IPv6Address(data[16:32])), int.from_bytes(data[48:50], "big")), size)


def _check_vectors(header: bytes, start: int) -> None:
    """Walk the TLVs behind the addresses; nothing in them is used but the checksum."""
    checked = False
    while start < len(header):
        value = start + 3
        end = value + int.from_bytes(header[start + 1 : value], "big")
        if value > len(header) or end > len(header):
            raise ProxyHeaderError(f"PROXY header: a TLV at octet {start} goes beyond the header's {len(header)}")
        if header[start] == _CRC32C:
            if checked or end - value != 4:
                raise ProxyHeaderError("PROXY header with a checksum that comes twice or has not 4 octets")
            checked = True
            if _crc32c(header[:value] + bytes(4) + header[end:]) != int.from_bytes(header[value:end], "big"):
                raise ProxyHeaderError("PROXY header whose checksum is wrong")
        start = end


def _crc32c(data: bytes) -> int:
    """The Castagnoli CRC; RFC 9260 appendix A."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _entry(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)  # the polynomial, lowest bit first
    return crc


_TABLE = tuple(map(_entry, range(256)))
