"""Certificates for tests of TLS: a cluster's CAs, and leaves of every sort, right and wrong."""

from __future__ import annotations

import functools
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from monoport.access.claims import Identity, Kind
from monoport.access.identity import extension
from monoport.auth.authorities import Authority, CaKind, TrustedCas, generate
from monoport.auth.certificates import issue_host, issue_user

CLUSTER = "example.com"
NAMES = ("localhost", "proxy.example.com", "kube.proxy.example.com", "*.db.proxy.example.com")


@dataclass(frozen=True)
class Leaf:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes

    def load(self, context: ssl.SSLContext, folder: Path) -> None:
        path = folder / "leaf.pem"
        path.write_bytes(self.certificate + self.key)
        context.load_cert_chain(path)


@dataclass(frozen=True)
class Cluster:
    """The CAs, the proxy's certificate and a stranger's CA of the same name."""

    users: Authority
    hosts: Authority
    proxy: Leaf
    strangers: Authority

    @property
    def trusted(self) -> TrustedCas:
        return TrustedCas(CLUSTER, host=(self.hosts.pem,), user=(self.users.pem,))

    def client(self, *alpn: str) -> ssl.SSLContext:
        """A client's context that believes the cluster's host CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.hosts.pem)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def user(self, ca: Authority | None = None, lifetime: timedelta = timedelta(hours=1)) -> Leaf:
        """A user's certificate, by default a good one."""
        key, pem = _key()
        now = datetime.now(UTC)
        certificate = issue_user(ca or self.users, _public(key), alice(now + lifetime), now)
        return Leaf(certificate.encode(), pem)

    def expired(self) -> Leaf:
        """A user's certificate that ended an hour ago."""
        key, pem = _key()
        then = datetime.now(UTC) - timedelta(hours=2)
        return Leaf(issue_user(self.users, _public(key), alice(then + timedelta(hours=1)), then).encode(), pem)

    def for_servers(self) -> Leaf:
        """Signed by the user CA, but for servers only."""
        key, pem = _key()
        now = datetime.now(UTC)
        identity = alice(now + timedelta(hours=1))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alice")]))
            .issuer_name(self.users.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(identity.expires)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(extension(identity), critical=False)
            .sign(self.users.key, hashes.SHA256())
        )
        return Leaf(certificate.public_bytes(Encoding.PEM), pem)


def alice(expires: datetime) -> Identity:
    """The user of these tests."""
    return Identity(Kind.USER, "alice", CLUSTER, roles=("access",), principals=("alice",), expires=expires)


@functools.cache
def cluster() -> Cluster:
    """One cluster for the whole test process."""
    now = datetime.now(UTC)
    hosts = generate(CaKind.HOST, CLUSTER, now)
    key, pem = _key()
    until = now + timedelta(hours=1)
    identity = Identity(Kind.HOST, "proxy-1", CLUSTER, roles=("proxy",), principals=("localhost",), expires=until)
    proxy = Leaf(issue_host(hosts, _public(key), identity, now, NAMES).encode(), pem)
    return Cluster(generate(CaKind.USER, CLUSTER, now), hosts, proxy, generate(CaKind.USER, CLUSTER, now))


def public(*names: str) -> Leaf:
    """A self-signed web certificate, as https_keypairs would hold."""
    key, pem = _key()
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Leaf(certificate.public_bytes(Encoding.PEM), pem)


def _key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
