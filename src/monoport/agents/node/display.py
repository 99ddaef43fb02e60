"""X11 displays that a node offers for forwarding: numbers, ports, and the file that holds a display's cookie.

Belongs here: the form of an Xauthority file (Xau's, X.Org). Not here: X11 itself, which the node only carries. It is
used by the child too, so it imports the standard library only.
"""

from __future__ import annotations

import struct

FIRST, LAST = 10, 1_000  # numbers of forwarded displays, as sshd's X11DisplayOffset and its end
BASE_PORT = 6_000  # display 0 of TCP
FAMILY_LOCAL = 256  # a host name; what Xlib looks for where DISPLAY is on loopback
FAMILY_WILD = 65_535  # any host
MAX_PROTOCOL = 64  # characters of an authorisation's name; MIT-MAGIC-COOKIE-1 has 18
MAX_COOKIE = 256  # bytes; a cookie has 16


def fits(protocol: bytes, cookie: bytes) -> bool:
    """Whether a client's authorisation can be written down: a plain name of some length, a cookie of some length."""
    name = protocol.decode("ascii", "replace")
    plain = all(character.isalnum() or character in "-_.:/" for character in name) and name.isascii()
    return plain and 0 < len(protocol) <= MAX_PROTOCOL and 0 < len(cookie) <= MAX_COOKIE


def authority(hostname: bytes, number: int, protocol: bytes, cookie: bytes) -> bytes:
    """Return an Xauthority file that lets its reader use display `number` of this host, under any of its names."""
    entries = ((FAMILY_LOCAL, hostname), (FAMILY_WILD, b""))
    return b"".join(
        struct.pack(">H", family) + b"".join(map(_counted, (address, str(number).encode(), protocol, cookie)))
        for family, address in entries
    )


def _counted(field: bytes) -> bytes:
    return struct.pack(">H", len(field)) + field
