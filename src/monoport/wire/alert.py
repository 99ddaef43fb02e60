"""TLS alert records written by hand, for refusals made before any TLS library has seen the bytes.

Belongs here: the alert record and the descriptions that refusals use. Does not: alerts inside a running TLS session,
which the TLS library writes itself.
"""

HANDSHAKE_FAILURE = 40
DECODE_ERROR = 50
INTERNAL_ERROR = 80
UNRECOGNIZED_NAME = 112
NO_APPLICATION_PROTOCOL = 120


def fatal(description: int) -> bytes:
    """One plaintext TLS record that carries a fatal alert.

    Args:
        description: the alert's number, 0..255.
    Returns:
        7 octets: content type 21, version 0x0303, length 2, level fatal (2), description.
    Raises:
        ValueError: the number does not fit one octet.
    Source: RFC 8446 sections 5.1 and 6; RFC 7301 section 3.2 for 120.
    """
    return b"\x15\x03\x03\x00\x02\x02" + bytes((description,))
