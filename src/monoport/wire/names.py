"""The one canonical form of host names: lower case, no trailing dot, IDNA A-labels.

Belongs here: turning what a client or a configuration calls a host into the form that every table is keyed by, and
the host[:port] of a URL. Does not: what a name means; that is routing.
"""

import ipaddress
import re

MAX_NAME = 253  # octets of a host name in text without its final dot (RFC 1035 section 2.3.4: 255 on the wire)

# RFC 1123 section 2.1 labels, and the underscore, which container and service names have in practice.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch
_PORT = re.compile(r"[0-9]{1,5}").fullmatch


class HostNameError(ValueError):
    """A text that is no legal host name; the message says why and is safe to log."""


def canonical(name: str) -> str:
    """The canonical form of a host name.

    Args:
        name: a host name, in any case, with or without a final dot, as U-labels or A-labels.
    Raises:
        HostNameError: empty, longer than MAX_NAME, or not made of legal labels.
    Source: RFC 1123 section 2.1, RFC 3490 section 4, RFC 6066 section 3.
    """
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise HostNameError(f"illegal host name {_shown(name)}: not encodable as IDNA") from error
    name = name.lower()
    if name.endswith("."):
        name = name[:-1]
    if not name:
        raise HostNameError("empty host name")
    if len(name) > MAX_NAME:
        raise HostNameError(f"host name of {len(name)} octets, limit {MAX_NAME}")
    if _NAME(name) is None:
        raise HostNameError(f"illegal host name {_shown(name)}")
    return name


def authority(text: str) -> str:
    """The canonical form of a URL's host[:port], safe to be written into a header or a URL.

    Args:
        text: "host", "host:port", "1.2.3.4:port" or "[v6]:port".
    Raises:
        HostNameError: the host is illegal or the port is no number from 1 to 65535.
    Source: RFC 3986 section 3.2, RFC 9112 section 3.2.
    """
    host, port = _split(text)
    return f"{host}:{port}" if port else host


def host(text: str) -> str:
    """The canonical host of a host[:port]; an IPv6 address keeps its brackets.

    Args:
        text: as for authority().
    Raises:
        HostNameError: as authority().
    """
    return _split(text)[0]


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise HostNameError(f"illegal address {_shown(text)}")
        name, port = _ipv6(address), rest[1:]
        colon = rest[:1]
    else:
        name, colon, port = text.partition(":")
        name = canonical(name)
    if colon and (_PORT(port) is None or not 0 < int(port) < 65_536):
        raise HostNameError(f"illegal port in {_shown(text)}")
    return name, port


def _ipv6(address: str) -> str:
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError as error:
        raise HostNameError(f"illegal address {_shown(address)}") from error
    if parsed.scope_id is not None:
        raise HostNameError(f"address {_shown(address)} has a zone, which means nothing to a peer")
    return f"[{parsed.compressed}]"


def _shown(name: str) -> str:
    """The name as a log may show it: escaped and cut."""
    return ascii(name if len(name) <= 80 else name[:80] + "...")  # 80: one line of a log
