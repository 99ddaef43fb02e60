"""The CA behind a web certificate, so that other programs can verify it too.

Belongs here: reading the chain of a finished handshake. Does not belong here: deciding whether to trust it.
"""

import ssl
from typing import Any

from monoport.net.tls import TlsStream


def anchor(stream: TlsStream, *, verified: bool) -> str:
    """The last certificate of the server's chain, PEM: the root that verified it, or the last one that it sent.

    Args:
        stream: after its handshake.
        verified: whether the context verified the chain.

    Returns:
        Empty if the server sent no certificate.

    Source: `get_verified_chain` and `get_unverified_chain` are public on SSLObject since Python 3.13; before that
    they are there on the object below it.
    """
    handshake: Any = stream._ssl
    inner = handshake if hasattr(handshake, "get_verified_chain") else handshake._sslobj
    chain = (inner.get_verified_chain() if verified else inner.get_unverified_chain()) or []
    if not chain:
        return ""
    last = chain[-1]
    der = last if isinstance(last, bytes) else last.public_bytes(_DER)
    return ssl.DER_cert_to_PEM_cert(der)


_DER = 2  # _ssl.ENCODING_DER
