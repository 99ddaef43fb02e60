"""Public keys that others send to have them certified.

Belongs here: reading them within bounds, and refusing weak ones. Does not: certificates (certificates.py).
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

from monoport.errors import Failure

MAX_KEY: Final = 16 * 1024  # bytes of a public key's text: RSA of 4096 bits takes about 800
SMALLEST_RSA: Final = 2048  # bits, NIST SP 800-57 part 1

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class CertificateError(Failure):
    """A certificate cannot be issued as asked."""


def load_key(pem: str | bytes) -> PublicKey:
    """Return a public key that may be certified: EC on a NIST curve, Ed25519, or RSA of at least `SMALLEST_RSA` bits.

    Raises:
        CertificateError: for anything else.
    """
    data = _bounded(pem)
    try:
        return _acceptable(load_pem_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError("not a public key in PEM form") from error


def load_ssh_key(line: str | bytes) -> PublicKey:
    """Return a public key from a line as in authorized_keys, under the conditions of `load_key`.

    Raises:
        CertificateError: for anything else.
    """
    data = _bounded(line)
    try:
        return _acceptable(load_ssh_public_key(data))
    except (ValueError, TypeError, IndexError, NotImplementedError, UnsupportedAlgorithm) as error:
        # NotImplementedError is what cryptography raises for a compressed point
        raise CertificateError("not a line with an SSH public key") from error


def _bounded(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    if len(data) > MAX_KEY:
        raise CertificateError(f"public key takes {len(data)} bytes, limit {MAX_KEY}")
    return data


def _acceptable(key: object) -> PublicKey:
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1() | ec.SECP521R1()):
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey(key_size=size) if size >= SMALLEST_RSA:
            return key
        case _:
            raise CertificateError(f"public key must be EC P-256 or larger, Ed25519, or RSA of {SMALLEST_RSA} bits")
