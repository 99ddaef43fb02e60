"""The cluster's certificate authorities: making them, keeping them, and what others are told to trust.

Belongs here: CA keys and certificates. Does not: what they sign (certificates.py), who may ask for it (service.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID

from monoport.auth.storage.interface import AlreadyExistsError, Clock, Storage, utc_now
from monoport.errors import Failure

CA_LIFETIME: Final = timedelta(days=3650)  # ten years: rotation, not expiry, ends a CA
CLOCK_SKEW: Final = timedelta(minutes=1)  # how far others' clocks may lag behind for a fresh certificate to be valid
MAX_TRUSTED: Final = 1024 * 1024  # bytes of JSON: hundreds of CAs


class CaKind(StrEnum):
    """What a CA signs: users, the cluster's hosts, database servers, or agents' client certificates to databases."""

    USER = "user"
    HOST = "host"
    DB = "db"
    DBCLIENT = "dbclient"

    @property
    def signs_ssh(self) -> bool:
        """Whether there is an OpenSSH CA key beside the X.509 CA."""
        return self in (CaKind.USER, CaKind.HOST)


class AuthorityError(Failure):
    """CAs are missing or cannot be read."""


@dataclass(frozen=True, slots=True)
class Authority:
    """One CA with its private keys; it never leaves the auth service.

    Args:
        kind: what it signs.
        cluster: whose it is.
        certificate: self-signed, P-256.
        key: of the certificate.
        ssh_key: OpenSSH CA key, for users and hosts.
    """

    kind: CaKind
    cluster: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    ssh_key: ec.EllipticCurvePrivateKey | None = None

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def ssh_line(self) -> str:
        """The OpenSSH CA's public key as one line of authorized_keys; raises AuthorityError where there is none."""
        return self.ssh_signer.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    @property
    def ssh_signer(self) -> ec.EllipticCurvePrivateKey:
        """The OpenSSH CA's key; raises AuthorityError where there is none."""
        if self.ssh_key is None:
            raise AuthorityError(f"the {self.kind} CA signs no SSH certificates")
        return self.ssh_key

    def __repr__(self) -> str:
        return f"Authority({self.kind} of {self.cluster}, {pin(self.certificate)})"


def generate(kind: CaKind, cluster: str, now: datetime) -> Authority:
    """Make a new CA; its subject names cluster and kind, and a serial that tells it from its successors.

    Args:
        kind: what it is to sign.
        cluster: whose it is, at most 64 characters go into the subject.
        now: UTC; it is valid from `CLOCK_SKEW` before.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, f"monoport {kind} CA"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():x}"[:16]),
        ]
    )
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS, critical=True)
        .add_extension(ski, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .sign(key, hashes.SHA256())
    )
    ssh_key = ec.generate_private_key(ec.SECP256R1()) if kind.signs_ssh else None
    return Authority(kind, cluster, certificate, key, ssh_key)


_SIGNS: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def pin(certificate: x509.Certificate | str) -> str:
    """Return "sha256:" and the hex SHA-256 of a CA's SubjectPublicKeyInfo.

    Raises:
        AuthorityError: if a PEM certificate cannot be read.
    """
    if isinstance(certificate, str):
        certificate = _load_pem(certificate)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(spki).hexdigest()


@dataclass(frozen=True, slots=True)
class TrustedCas:
    """What everybody may know of a cluster's CAs; several of a kind while one replaces another, the signing one first.

    Args:
        cluster: whose they are.
        host, user, db, dbclient: PEM certificates.
        ssh_user, ssh_host: lines as in authorized_keys.
    """

    cluster: str
    host: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    db: tuple[str, ...] = ()
    dbclient: tuple[str, ...] = ()
    ssh_user: tuple[str, ...] = ()
    ssh_host: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return an object of JSON types."""
        return {"cluster": self.cluster, **{part: list(getattr(self, part)) for part in (*_PEMS, *_LINES)}}

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Return what `to_json` wrote, from the object or from its text.

        Raises:
            AuthorityError: if it has another shape, or a certificate or key in it cannot be read.
        """
        if isinstance(document, str | bytes):
            document = _parse(document)
        if not isinstance(document, Mapping) or not isinstance(cluster := document.get("cluster"), str) or not cluster:
            raise AuthorityError("trusted CAs: expected an object with the name of the cluster")
        parts = {part: _texts(part, document.get(part, ())) for part in (*_PEMS, *_LINES)}
        for part in _PEMS:
            for pem in parts[part]:
                _load_pem(pem)
        for part in _LINES:
            for line in parts[part]:
                _check_line(part, line)
        return cls(cluster, **parts)


_PEMS: Final = ("host", "user", "db", "dbclient")
_LINES: Final = ("ssh_user", "ssh_host")


@dataclass(frozen=True, slots=True)
class Authorities:
    """All CAs of one cluster; of each kind the first signs, the others are still or already trusted."""

    cluster: str
    of: Mapping[CaKind, tuple[Authority, ...]]

    def signing(self, kind: CaKind) -> Authority:
        """Return the CA that signs certificates of `kind`."""
        return self.of[kind][0]

    @property
    def user(self) -> Authority:
        """The CA that signs users."""
        return self.signing(CaKind.USER)

    @property
    def host(self) -> Authority:
        """The CA that signs hosts."""
        return self.signing(CaKind.HOST)

    @property
    def db(self) -> Authority:
        """The CA that signs database servers."""
        return self.signing(CaKind.DB)

    @property
    def dbclient(self) -> Authority:
        """The CA that signs agents' client certificates to databases."""
        return self.signing(CaKind.DBCLIENT)

    @property
    def pins(self) -> tuple[str, ...]:
        """Pins of the host CAs, as for --ca-pin."""
        return tuple(pin(one.certificate) for one in self.of[CaKind.HOST])

    def trusted(self) -> TrustedCas:
        """Return their public parts."""
        pems = {kind.value: tuple(one.pem for one in self.of[kind]) for kind in CaKind}
        lines = {f"ssh_{kind}": tuple(one.ssh_line for one in self.of[kind]) for kind in CaKind if kind.signs_ssh}
        return TrustedCas(self.cluster, **pems, **lines)


async def load(storage: Storage, cluster: str) -> Authorities | None:
    """Return the cluster's CAs from the store, or None if any kind is missing.

    Raises:
        AuthorityError: if they are another cluster's, or cannot be read.
    """
    found: dict[CaKind, tuple[Authority, ...]] = {}
    for kind in CaKind:
        item = await storage.get(_key(kind))
        if item is None:
            return None
        found[kind] = _decode(kind, cluster, item.value)
    return Authorities(cluster, found)


async def ensure(storage: Storage, cluster: str, clock: Clock = utc_now) -> Authorities:
    """Return the cluster's CAs, making those that are missing; two that do so at once end with the same ones.

    Raises:
        AuthorityError: if the stored ones are another cluster's, or cannot be read.
    """
    for kind in CaKind:
        if await storage.get(_key(kind)) is None:
            try:
                await storage.create(_key(kind), _encode((generate(kind, cluster, clock()),)))
            except AlreadyExistsError:
                continue  # another auth service was faster; its CA is as good
    authorities = await load(storage, cluster)
    if authorities is None:
        raise AuthorityError("the cluster's CAs were removed from the store while they were read")
    return authorities


def _key(kind: CaKind) -> str:
    return f"/authorities/{kind}"


def _encode(authorities: tuple[Authority, ...]) -> bytes:
    entries = [
        {
            "certificate": one.pem,
            "key": _pem_of(one.key),
            "ssh_key": None if one.ssh_key is None else _pem_of(one.ssh_key),
        }
        for one in authorities
    ]
    return json.dumps({"cluster": authorities[0].cluster, "authorities": entries}).encode()


def _decode(kind: CaKind, cluster: str, value: bytes) -> tuple[Authority, ...]:
    document = _parse(value)
    try:
        if document["cluster"] != cluster:
            raise AuthorityError(
                f"the store holds the CAs of cluster {document['cluster']}, not of {cluster}: keep the name with "
                f"auth_service.cluster_name: {document['cluster']}, or begin a new cluster in another data_dir"
            )
        found = tuple(
            Authority(
                kind,
                cluster,
                _load_pem(entry["certificate"]),
                _load_key(entry["key"]),
                _load_key(entry["ssh_key"]) if kind.signs_ssh else None,
            )
            for entry in document["authorities"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AuthorityError(f"the store holds a {kind} CA that cannot be read") from error
    if not found:
        raise AuthorityError(f"the store holds no {kind} CA")
    return found


def _parse(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_TRUSTED:
        raise AuthorityError(f"CAs take {len(text)} bytes, limit {MAX_TRUSTED}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AuthorityError("CAs are not valid JSON") from error
    if not isinstance(document, dict):
        raise AuthorityError("CAs: expected a JSON object")
    return document


def _pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _load_key(pem: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(pem, str):
        raise TypeError("CA keys are kept as PEM")
    key = load_pem_private_key(pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("CA keys are elliptic curve keys")
    return key


def _load_pem(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise AuthorityError("a CA certificate cannot be read") from error


def _texts(part: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise AuthorityError(f"trusted CAs: {part}: expected a list of strings")
    return tuple(value)


def _check_line(part: str, line: str) -> None:
    try:
        if not line.isprintable():  # it is written into known_hosts as it stands: one line, nothing hidden
            raise ValueError("control characters")
        load_ssh_public_key(line.encode())
    except (ValueError, TypeError, IndexError, NotImplementedError, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"trusted CAs: {part}: not a line with an SSH public key") from error
