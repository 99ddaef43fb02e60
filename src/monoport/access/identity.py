"""From a certificate to the identity it proves.

Belongs here: reading and checking X.509 and OpenSSH certificates against a cluster's CAs.
Does not: issuing certificates (auth), TLS handshakes (net), deciding what an identity may do (decide.py).
"""

from __future__ import annotations

import binascii
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
    load_ssh_public_key,
)
from cryptography.hazmat.primitives.serialization.ssh import serialize_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from monoport.access.claims import (
    MAX_ENCODED,
    Destination,
    Identity,
    IdentityError,
    Kind,
    check_name,
    decode,
    encode,
)

__all__ = [
    "EXTENSION_OID",
    "NO_LOGIN",
    "SSH_EXTENSION",
    "ClusterCas",
    "Destination",
    "Identity",
    "IdentityError",
    "Kind",
    "check_name",
    "decode",
    "encode",
    "extension",
    "from_ssh",
    "from_x509",
]

# 2.25 is the arc in which a random UUID is an identifier of one's own (ITU-T X.667), so nothing needs registering.
EXTENSION_OID: Final = x509.ObjectIdentifier("2.25.100179116789823197490317753522893162024")
SSH_EXTENSION: Final = "identity@monoport"
NO_LOGIN: Final = "-monoport-no-login"  # sole principal of a user without logins: OpenSSH takes an empty list as "any"
MAX_SSH_CERTIFICATE: Final = 64 * 1024  # bytes of text; the identity takes at most a third of it after base64
FOREVER: Final = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp())  # datetime ends there; no CA of ours signs so far

# what cryptography raises for bytes that are no SSH key; NotImplementedError for a compressed point
_UNREADABLE: Final = (ValueError, TypeError, IndexError, NotImplementedError, UnsupportedAlgorithm)


class ClusterCas(Protocol):
    """What a cluster's identities are checked against; `auth.authorities.TrustedCas` is one.

    `user` and `host` are PEM certificates, `ssh_user` and `ssh_host` lines as in authorized_keys.
    """

    @property
    def cluster(self) -> str: ...
    @property
    def user(self) -> tuple[str, ...]: ...
    @property
    def host(self) -> tuple[str, ...]: ...
    @property
    def ssh_user(self) -> tuple[str, ...]: ...
    @property
    def ssh_host(self) -> tuple[str, ...]: ...


def extension(identity: Identity) -> x509.UnrecognizedExtension:
    """Return the X.509 extension that carries `identity`: a DER OCTET STRING of its JSON."""
    data = encode(identity)
    if len(data) < 0x80:
        length = bytes((len(data),))
    else:
        size = (len(data).bit_length() + 7) // 8
        length = bytes((0x80 | size,)) + len(data).to_bytes(size, "big")
    return x509.UnrecognizedExtension(EXTENSION_OID, b"\x04" + length + data)


def from_x509(cert: x509.Certificate, cas: ClusterCas, now: datetime | None = None) -> Identity:
    """Return the identity that `cert` proves, after checking signature, validity, usage and kind of CA.

    Args:
        cert: an end-entity certificate; that its key is held was proven elsewhere (TLS, or the proxy's word).
        cas: CAs of the cluster that is to vouch.
        now: instant to check validity at, UTC; the system clock when omitted.

    Raises:
        IdentityError: if any of it does not hold. RFC 5280 sections 4.1 and 4.2 name the parts.
    """
    now = now or datetime.now(UTC)
    kind = _issuing_kind(cert, cas)
    expires = cert.not_valid_after_utc
    _check_validity(cert.not_valid_before_utc, expires, now)
    try:
        extensions = cert.extensions
    except (ValueError, x509.DuplicateExtension) as error:
        raise IdentityError("certificate has malformed extensions") from error
    payload: bytes | None = None
    may_be_client = False
    for one in extensions:
        if one.oid == EXTENSION_OID and isinstance(one.value, x509.UnrecognizedExtension):
            payload = one.value.value
        elif isinstance(one.value, x509.UnrecognizedExtension):
            if one.critical:
                raise IdentityError("certificate has a critical extension that is not known here")
        elif isinstance(one.value, x509.BasicConstraints):
            if one.value.ca:
                raise IdentityError("certificate is a CA's, not a caller's")
        elif one.oid == ExtensionOID.EXTENDED_KEY_USAGE:
            may_be_client = ExtendedKeyUsageOID.CLIENT_AUTH in one.value
    if not may_be_client:
        raise IdentityError("certificate is not for clients (extended key usage)")
    if payload is None:
        raise IdentityError("certificate carries no identity")
    return _vouched(decode(_octets(payload), expires), kind, cas)


def from_ssh(certificate: bytes | str, cas: ClusterCas, now: datetime | None = None) -> Identity:
    """Return the identity that an OpenSSH certificate proves, user's or host's.

    Args:
        certificate: one line as in `id-cert.pub`, or the binary blob of the SSH protocol.
        cas: CAs of the cluster that is to vouch.
        now: instant to check validity at, UTC; the system clock when omitted.

    Raises:
        IdentityError: if signature, CA, type, validity, principals or options do not hold. OpenSSH PROTOCOL.certkeys.
    """
    now = now or datetime.now(UTC)
    cert = _parse_ssh(certificate)
    kind = Kind.USER if cert.type is SSHCertificateType.USER else Kind.HOST
    _check_ssh_signature(cert, cas.ssh_user if kind is Kind.USER else cas.ssh_host, kind)
    if cert.valid_before > FOREVER or cert.valid_after > FOREVER:
        raise IdentityError("certificate has no end of validity")
    expires = datetime.fromtimestamp(cert.valid_before, UTC)
    _check_validity(datetime.fromtimestamp(cert.valid_after, UTC), expires, now)
    if cert.critical_options:
        raise IdentityError("certificate has critical options that are not known here")
    payload = cert.extensions.get(SSH_EXTENSION.encode())
    if not payload:
        raise IdentityError("certificate carries no identity")
    identity = _vouched(decode(payload, expires), kind, cas)
    _check_ssh_principals(cert.valid_principals, identity)
    return identity


def _vouched(identity: Identity, kind: Kind, cas: ClusterCas) -> Identity:
    if identity.kind is not kind:
        raise IdentityError(f"a {kind} CA cannot vouch for a {identity.kind}")
    if identity.cluster != cas.cluster:
        raise IdentityError(f"the CAs of {cas.cluster} cannot vouch for {identity}")
    return identity


def _issuing_kind(cert: x509.Certificate, cas: ClusterCas) -> Kind:
    for kind, pems in ((Kind.USER, cas.user), (Kind.HOST, cas.host)):
        for pem in pems:
            if _issued_by(cert, _load_ca(pem)):
                return kind
    raise IdentityError("certificate was not issued by this cluster")


def _issued_by(cert: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


@lru_cache(maxsize=64)  # a cluster has two CAs of these kinds, twice that while rotating, and leaves bring theirs
def _load_ca(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


@lru_cache(maxsize=64)
def _load_ssh_ca(line: str) -> bytes:
    return serialize_ssh_public_key(load_ssh_public_key(line.encode()))


def _check_validity(begins: datetime, expires: datetime, now: datetime) -> None:
    if now < begins:
        raise IdentityError(f"certificate is not valid before {begins:%Y-%m-%d %H:%M:%S} UTC")
    if now >= expires:
        raise IdentityError(f"certificate expired at {expires:%Y-%m-%d %H:%M:%S} UTC")


def _octets(der: bytes) -> bytes:
    """Return the content of exactly one DER OCTET STRING of at most `MAX_ENCODED` bytes."""
    if len(der) >= 2 and der[0] == 0x04:
        size, begin = der[1], 2
        if size & 0x80:
            begin = 2 + (size & 0x7F)
            size = int.from_bytes(der[2:begin], "big")
        if begin <= 4 and size <= MAX_ENCODED and len(der) == begin + size:
            return der[begin:]
    raise IdentityError("certificate carries a malformed identity")


def _parse_ssh(certificate: bytes | str) -> SSHCertificate:
    line = certificate.encode() if isinstance(certificate, str) else certificate
    if len(line) > MAX_SSH_CERTIFICATE:
        raise IdentityError(f"certificate takes {len(line)} bytes, limit {MAX_SSH_CERTIFICATE}")
    if line[:2] == b"\0\0":  # a blob begins with the length of its type's name; a line never with NUL
        size = int.from_bytes(line[:4], "big")
        line = line[4 : 4 + size] + b" " + binascii.b2a_base64(line, newline=False)
    try:
        cert = load_ssh_public_identity(line)
    except _UNREADABLE as error:
        raise IdentityError("not an OpenSSH certificate") from error
    if not isinstance(cert, SSHCertificate):
        raise IdentityError("a plain key is not a certificate")
    return cert


def _check_ssh_signature(cert: SSHCertificate, authorities: tuple[str, ...], kind: Kind) -> None:
    try:
        signer = serialize_ssh_public_key(cert.signature_key())
        known = any(signer == _load_ssh_ca(line) for line in authorities)
        if known:
            cert.verify_cert_signature()
    except (*_UNREADABLE, InvalidSignature) as error:
        raise IdentityError("certificate has a bad signature") from error
    if not known:
        raise IdentityError(f"certificate was not signed by a {kind} CA of this cluster")


def _check_ssh_principals(principals: list[bytes], identity: Identity) -> None:
    if not principals:
        raise IdentityError("certificate has no principals, which OpenSSH takes as any")
    expected = {principal.encode() for principal in identity.principals or (NO_LOGIN,)}
    if {bytes(principal) for principal in principals} != expected:
        raise IdentityError("certificate's principals are not those of its identity")
