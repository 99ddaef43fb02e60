"""Certificates that came for one of our keys: whether they really are for it.

Belongs here: comparing a certificate with a key pair. Making the pair: `auth.keys`; where it is kept: `profile`.
"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from monoport.auth.keys import KeyPair


def owns(pair: KeyPair, certificate_pem: str) -> bool:
    """Whether the X.509 certificate was made for this key; raises ValueError if it is none."""
    public = x509.load_pem_x509_certificate(certificate_pem.encode()).public_key()
    return _same(pair, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def owns_ssh(pair: KeyPair, line: str) -> bool:
    """Whether the OpenSSH certificate was made for this key; raises ValueError if it is neither key nor certificate.

    A certificate for a key of a kind that cryptography does not read, such as a security key's, is for another key.
    """
    try:
        certificate = serialization.load_ssh_public_identity(line.encode())
    except (UnsupportedAlgorithm, NotImplementedError):
        return False
    if not isinstance(certificate, serialization.SSHCertificate):
        return False
    return _same(pair, certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def load(path_text: str) -> KeyPair:
    """The pair of a private key, PKCS#8 PEM; raises ValueError."""
    key = serialization.load_pem_private_key(path_text.encode(), password=None)
    public = key.public_key()
    return KeyPair(
        path_text,
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
    )


def _same(pair: KeyPair, public_pem: bytes) -> bool:
    return pair.public.encode().strip() == public_pem.strip()
