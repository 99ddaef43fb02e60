"""Plaintext HTTP: the redirect, and what a request cannot put into it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monoport.wire.http import MAX_HEAD, MAX_TARGET, redirect

FALLBACK = "proxy.example.com:3080"


def location(request: bytes) -> str:
    """The one Location of the answer; the whole answer is checked on the way."""
    answer = redirect(request, FALLBACK)
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode("ascii").split("\r\n")
    assert status == "HTTP/1.1 308 Permanent Redirect"
    named = dict(field.split(": ", 1) for field in fields)
    assert len(named) == len(fields) == 5
    assert named["Content-Length"] == str(len(body))
    assert named["Connection"] == "close"
    return named["Location"]


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (b"GET / HTTP/1.1\r\nHost: Example.com:3080\r\n\r\n", "https://example.com:3080/"),
        (
            b"GET /web?a=b&c=%20 HTTP/1.1\r\nA: b\r\nhost:example.com\r\nC: d\r\n\r\n",
            "https://example.com/web?a=b&c=%20",
        ),
        (b"HEAD /x HTTP/1.0\nHost: \texample.com \n\n", "https://example.com/x"),
        (b"POST / HTTP/1.1\r\nHost: [::1]:3080\r\n\r\nbody", "https://[::1]:3080/"),
        (b"GET / HTTP/1.1\r\nHost: example.com:80\r\n\r\n", "https://example.com/"),
        (b"GET //evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "https://example.com//evil.example/"),
        (b"GET / HTTP/1.1\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET / HTTP/1.1\r\nHost: user@example.com\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET / HTTP/1.1\r\nHost: a.example/../b\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET / HTTP/1.1\r\nHost: a\rX-Evil: b\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET / HTTP/1.1\r\nHost: b\xc3\xbccher.example\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET /a\rb HTTP/1.1\r\nHost: example.com\r\n\r\n", "https://example.com/"),
        (b'GET /"<b> HTTP/1.1\r\nHost: example.com\r\n\r\n', "https://example.com/"),
        (b"GET http://other.example/x HTTP/1.1\r\nHost: example.com\r\n\r\n", "https://example.com/"),
        (b"OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n", "https://example.com/"),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", "https://example.com/"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", f"https://{FALLBACK}/"),
        (b"GET /" + b"a" * MAX_TARGET + b" HTTP/1.1\r\nHost: example.com\r\n\r\n", "https://example.com/"),
    ],
)
def test_location(request_, wanted):
    assert location(request_) == wanted


def test_the_head_is_waited_for_and_no_longer_than_the_limit():
    request = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
    assert {redirect(request[:end], FALLBACK) for end in range(4, len(request))} == {None}
    endless = b"GET / HTTP/1.1\r\nHost: example.com\r\nX: " + b"a" * MAX_HEAD
    assert redirect(endless[: MAX_HEAD - 1], FALLBACK) is None
    assert location(endless[:MAX_HEAD]) == f"https://{FALLBACK}/"


@settings(deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80))
def test_nothing_of_the_client_breaks_the_answer(target, name):
    found = location(b"GET " + target + b" HTTP/1.1\r\nHost: " + name + b"\r\n\r\n")
    assert re.fullmatch(r"https://[a-z0-9_.:\[\]-]+/[!#-;=?-\[\]_a-z~]*", found)
