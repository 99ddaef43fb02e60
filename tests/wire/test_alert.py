"""The alert record, read by a TLS library."""

import ssl

import pytest

from monoport.wire import alert


def test_octets():
    assert alert.fatal(120) == bytes.fromhex("15 03 03 00 02 02 78")


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (alert.HANDSHAKE_FAILURE, "HANDSHAKE_FAILURE"),
        (alert.DECODE_ERROR, "DECODE_ERROR"),
        (alert.INTERNAL_ERROR, "INTERNAL_ERROR"),
        (alert.UNRECOGNIZED_NAME, "UNRECOGNIZED_NAME"),
        (alert.NO_APPLICATION_PROTOCOL, "NO_APPLICATION_PROTOCOL"),
    ],
)
def test_openssl_understands_it(description, words):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    incoming.write(alert.fatal(description))
    with pytest.raises(ssl.SSLError, match=f"{words}|{words.replace('_', ' ').lower()}"):
        session.do_handshake()


@pytest.mark.parametrize("description", [-1, 256])
def test_a_number_that_is_no_octet(description):
    with pytest.raises(ValueError, match="range"):
        alert.fatal(description)
