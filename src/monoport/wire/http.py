"""Plaintext HTTP on a TLS port: recognised by its verb, answered with a redirect to https.

Belongs here: just enough of an HTTP/1 request head to answer 308. Does not: serving HTTP, which happens inside TLS.
"""

import re

from monoport.wire import names

VERBS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH ", b"PRI ")
MAX_HEAD = 8192  # octets of a request head that are looked at, as in common servers; beyond it the fixed host is used
MAX_TARGET = 2048  # octets of a target that is repeated in Location; longer ones are sent to "/"

_END = re.compile(rb"\r?\n\r?\n")
_HOST = re.compile(rb"\r?\nhost:[ \t]*([^\r\n]*?)[ \t]*(?=\r?\n)", re.IGNORECASE)
_TARGET = re.compile(
    rb"[A-Z]+ (/[\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]*) HTTP/1\.[01]\r?\n"
)  # RFC 3986 characters


def redirect(data: bytes, fallback: str) -> bytes | None:
    """The answer to a plaintext request: 308 to the same place over https.

    Args:
        data: everything received so far, beginning with one of VERBS.
        fallback: host[:port] to name when the request names no legal one.
    Returns:
        a whole HTTP/1.1 response, or None while the request's head is incomplete and shorter than MAX_HEAD.
    Source: RFC 9110 sections 15.4.9 and 10.2.2; RFC 9112 section 3.2.
    """
    end = _END.search(data, 0, MAX_HEAD)
    if end is None and len(data) < MAX_HEAD:
        return None
    head = data[: end.end()] if end else b""
    location = f"https://{_authority(head) or fallback}{_path(head)}"
    body = f"This port speaks TLS. Use {location}\n"
    return (
        f"HTTP/1.1 308 Permanent Redirect\r\nLocation: {location}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
    ).encode("ascii")


def _authority(head: bytes) -> str | None:
    """The one Host field, if it is there once and legal."""
    fields = _HOST.findall(head)
    if len(fields) != 1:
        return None
    try:
        return names.authority(fields[0].decode("ascii")).removesuffix(":80")  # http's own port is not https's
    except (UnicodeDecodeError, names.HostNameError):
        return None


def _path(head: bytes) -> str:
    """The target in origin form, if it holds nothing but a URL's own characters."""
    target = _TARGET.match(head)
    if target is None or len(target[1]) > MAX_TARGET:
        return "/"
    return target[1].decode("ascii")
