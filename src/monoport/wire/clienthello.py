"""The TLS ClientHello, as far as routing needs it: name, protocols, versions, and where it ends.

Belongs here: RFC 8446's ClientHello and the records that carry it, read strictly. Does not: what a name or a protocol
means (routing), and the handshake itself, which the TLS library does from the same bytes.
"""

from dataclasses import dataclass
from struct import Struct

from monoport.wire import names

MAX_HELLO = 65_536  # post-quantum hellos pass 1.5 KiB; this caps memory per unknown peer, record headers included
# Records times octets: callers parse again with every segment, so this caps what a hello split into tiny records and
# sent octet by octet can cost, at about two seconds of processor time; 1600 records of one octet each still pass.
MAX_WALK = 1 << 24
MAX_EXTENSIONS = 128  # browsers send about 20; caps the work that one complete hello can cause
MAX_PROTOCOLS = 128  # ALPN names; browsers send 2; caps the same work
MAX_FRAGMENT = 16_384  # RFC 8446 section 5.1: 2^14 octets in one plaintext record

_LEAST = 38  # octets of a ClientHello: version 2, random 32, and at least session id 1, cipher suites 2, compression 1
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_SUPPORTED_VERSIONS = 43
_record = Struct(">BBxH").unpack_from  # type, major version, (minor,) length
_extension = Struct(">HH").unpack_from  # type, length


class HelloError(ValueError):
    """Bytes that can never become an acceptable ClientHello; the message is one safe line for a log."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What routing reads from a ClientHello.

    server_name: canonical host name, None without SNI. alpn: names in the client's order, octets as latin-1, GREASE
    kept. versions: TLS versions offered, GREASE kept. size: octets of the records that carried it.
    """

    server_name: str | None
    alpn: tuple[str, ...]
    versions: tuple[int, ...] = ()
    size: int = 0


def parse(data: bytes) -> ClientHello | None:
    """Read one ClientHello from the start of a connection's bytes.

    Args:
        data: everything received so far; may go on behind the hello.
    Returns:
        the hello, or None while more octets are needed.
    Raises:
        HelloError: what is there cannot be a ClientHello within MAX_HELLO octets.
    Source: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301 section 3.1; RFC 8701 for GREASE.
    """
    have = len(data)
    if have < 6 or data[0] != _HANDSHAKE or data[1] != 3 or data[5] != _CLIENT_HELLO:
        _check_start(data)
        return None
    fragment = data[3] << 8 | data[4]
    if have >= 9 and fragment >= 4:
        length = int.from_bytes(data[6:9], "big")
        if length + 4 == fragment <= MAX_FRAGMENT:  # the usual hello: one record, nothing else in it
            return _body(data, 9, 9 + length, 9 + length) if have >= 9 + length else None
    return _reassemble(data)


def missing(data: bytes) -> int:
    """Return how many octets, at least, must follow before `parse` can return a hello.

    Who waits for that many between two calls makes a hello that trickles in octet by octet cost some forty of them.

    Args:
        data: octets for which `parse` has returned None.
    """
    have, position, gathered, wanted, head = len(data), 0, 0, 4 + _LEAST, b""
    while position + 5 <= have:
        fragment = data[position + 3] << 8 | data[position + 4]
        start, position = position + 5, position + 5 + fragment
        gathered += fragment
        if len(head) < 4:
            head += data[start : min(position, start + 4 - len(head))]
            if len(head) == 4:
                wanted = 4 + int.from_bytes(head[1:], "big")
    rest = wanted - gathered
    return max(1, position - have + (5 + rest if rest > 0 else 0))


def _check_start(data: bytes) -> None:
    """Judge the first record's header and the handshake type, as far as they are there."""
    _check_header(data[:5])
    if len(data) > 5 and data[5] != _CLIENT_HELLO:
        raise HelloError(f"handshake message of type {data[5]}, not a ClientHello")


def _check_header(header: bytes) -> None:
    """Judge up to five octets of a record header."""
    if header and header[0] != _HANDSHAKE:
        raise HelloError(f"record of type {header[0]} where a handshake record is due")
    if len(header) > 1 and header[1] != 3:
        raise HelloError(f"record of version {header[1]}.x, not TLS")
    if len(header) == 5:
        fragment = header[3] << 8 | header[4]
        if not 0 < fragment <= MAX_FRAGMENT:
            raise HelloError(f"handshake record of {fragment} octets, allowed are 1 to {MAX_FRAGMENT}")


def _reassemble(data: bytes) -> ClientHello | None:
    """Follow the records of a hello that its first record does not hold alone; cheap until the last octet is there."""
    have, position, gathered, records = len(data), 0, 0, 0
    wanted = 4  # the handshake header; the whole message once that is known
    head = b""
    while gathered < wanted:
        if position + 5 > have:
            _check_header(data[position:])
            return None
        kind, major, fragment = _record(data, position)
        if kind != _HANDSHAKE or major != 3 or not 0 < fragment <= MAX_FRAGMENT:
            _check_header(data[position : position + 5])
        start = position + 5
        position = start + fragment
        records += 1
        if position > MAX_HELLO:
            raise HelloError(f"ClientHello's records go on beyond {position} bytes, limit {MAX_HELLO}")
        if records * position > MAX_WALK:
            raise HelloError(f"ClientHello split too finely: {records} records in {position} bytes")
        gathered += fragment
        if len(head) < 4:
            head += data[start : min(position, start + 4 - len(head))]
            if len(head) == 4:
                wanted = _message_size(head)
        if len(head) == 4 and gathered > wanted:
            raise HelloError(f"{gathered - wanted} octets behind the ClientHello in its record")
        if position > have:
            return None
    return _body(_joined(data, position), 4, wanted, position)


def _message_size(head: bytes) -> int:
    """Octets of the handshake message, its four octets of header included."""
    size = 4 + int.from_bytes(head[1:], "big")
    if size > MAX_HELLO:
        raise HelloError(f"ClientHello of {size} octets, limit {MAX_HELLO}")
    return size


def _joined(data: bytes, end: int) -> bytes:
    """The payloads of all records before end, which the caller has checked."""
    parts, position = [], 0
    while position < end:
        stop = position + 5 + (data[position + 3] << 8 | data[position + 4])
        parts.append(data[position + 5 : stop])
        position = stop
    return b"".join(parts)


def _body(data: bytes, start: int, end: int, size: int) -> ClientHello:
    """Read the ClientHello structure data[start:end]; size goes into the result."""
    if end - start < _LEAST:
        raise HelloError(f"ClientHello of {end - start} octets is truncated")
    if data[start] != 3:
        raise HelloError(f"ClientHello of version {data[start]}.x, not TLS")
    session = data[start + 34]
    position = start + 35 + session
    if session > 32 or position + 2 > end:
        raise HelloError(f"session id of {session} octets does not fit")
    suites = data[position] << 8 | data[position + 1]
    position += 2 + suites
    if suites < 2 or suites & 1 or position + 1 > end:
        raise HelloError(f"cipher suites of {suites} octets do not fit")
    methods = data[position]
    position += 1 + methods
    if methods < 1 or position > end:
        raise HelloError(f"compression methods of {methods} octets do not fit")
    if position == end:  # TLS 1.2 without extensions
        return ClientHello(None, (), (data[start] << 8 | data[start + 1],), size)
    if position + 2 > end or position + 2 + (data[position] << 8 | data[position + 1]) != end:
        raise HelloError("length of the extensions is not that of the ClientHello's rest")
    return _extensions(data, position + 2, end, data[start] << 8 | data[start + 1], size)


def _extensions(data: bytes, position: int, end: int, version: int, size: int) -> ClientHello:
    """Read the extensions data[position:end]; a hello without supported_versions offers version alone."""
    server_name: str | None = None
    alpn: tuple[str, ...] = ()
    versions: tuple[int, ...] = (version,)
    seen = set()
    while position < end:
        if position + 4 > end:
            raise HelloError(f"{end - position} octets behind the last extension")
        kind, length = _extension(data, position)
        start = position + 4
        position = start + length
        if position > end:
            raise HelloError(f"extension {kind} of {length} octets does not fit")
        if kind in seen:
            raise HelloError(f"extension {kind} appears twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            server_name = _server_name(data, start, position)
        elif kind == _ALPN:
            alpn = _protocols(data, start, position)
        elif kind == _SUPPORTED_VERSIONS:
            versions = _versions(data, start, position)
    if len(seen) > MAX_EXTENSIONS:
        raise HelloError(f"{len(seen)} extensions, limit {MAX_EXTENSIONS}")
    return ClientHello(server_name, alpn, versions, size)


def _server_name(data: bytes, start: int, end: int) -> str:
    """The host_name of a server_name extension, which every client in use sends alone."""
    if end - start < 5 or data[start + 2] != 0:
        raise HelloError("server_name extension without a host name")
    if (data[start] << 8 | data[start + 1]) != end - start - 2 or (
        data[start + 3] << 8 | data[start + 4]
    ) != end - start - 5:
        raise HelloError("lengths in the server_name extension do not fit, or it holds more than one name")
    try:
        return names.canonical(data[start + 5 : end].decode("ascii"))
    except UnicodeDecodeError as error:
        raise HelloError("server_name is not ASCII") from error
    except names.HostNameError as error:
        raise HelloError(f"server_name: {error}") from error


def _protocols(data: bytes, start: int, end: int) -> tuple[str, ...]:
    """The names of an ALPN extension, in order."""
    if end - start < 4 or (data[start] << 8 | data[start + 1]) != end - start - 2:
        raise HelloError("length of the ALPN list does not fit")
    offered: list[str] = []
    position = start + 2
    while position < end:
        stop = position + 1 + data[position]
        if stop == position + 1 or stop > end or len(offered) == MAX_PROTOCOLS:
            raise HelloError(f"ALPN list is malformed or longer than {MAX_PROTOCOLS} names")
        offered.append(data[position + 1 : stop].decode("latin-1"))
        position = stop
    return tuple(offered)


def _versions(data: bytes, start: int, end: int) -> tuple[int, ...]:
    """The versions of a supported_versions extension, in order."""
    count = end - start - 1
    if count < 2 or count & 1 or data[start] != count:
        raise HelloError("length of supported_versions does not fit")
    return tuple([data[at] << 8 | data[at + 1] for at in range(start + 1, end, 2)])
