"""The cluster that the benchmark pretends to be: its CAs, a proxy's certificate, a user's.

Belongs here: making the files that the proxies under test share. Does not belong here: measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from monoport.access.claims import Identity, Kind
from monoport.auth.authorities import CaKind, TrustedCas, generate
from monoport.auth.certificates import issue_host, issue_user

CLUSTER = "bench.example.com"


@dataclass(frozen=True, slots=True)
class Pki:
    """Where the files lie: certificate and key of the proxy (`both`: in one file, as HAProxy wants), and of a user."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "proxy.crt"

    @property
    def key(self) -> Path:
        return self.folder / "proxy.key"

    @property
    def both(self) -> Path:
        return self.folder / "proxy.pem"

    @property
    def user_certificate(self) -> Path:
        return self.folder / "user.crt"

    @property
    def user_key(self) -> Path:
        return self.folder / "user.key"

    @property
    def user_ca(self) -> Path:
        return self.folder / "user-ca.crt"

    @property
    def host_ca(self) -> Path:
        return self.folder / "host-ca.crt"

    def trusted(self) -> TrustedCas:
        """The cluster's CAs as the proxy knows them."""
        return TrustedCas(CLUSTER, host=(self.host_ca.read_text(),), user=(self.user_ca.read_text(),))


def make(folder: Path) -> Pki:
    """Write a fresh cluster's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pki = Pki(folder)
    now = datetime.now(UTC)
    until = now + timedelta(hours=12)
    users, hosts = generate(CaKind.USER, CLUSTER, now), generate(CaKind.HOST, CLUSTER, now)
    pki.user_ca.write_text(users.pem)
    pki.host_ca.write_text(hosts.pem)

    public = _key(pki.key)
    proxy = Identity(Kind.HOST, "proxy-1", CLUSTER, roles=("proxy",), principals=("localhost",), expires=until)
    names = ("localhost", "*.localhost", CLUSTER, "127.0.0.1")
    pki.certificate.write_text(issue_host(hosts, public, proxy, now, names))
    pki.both.write_text(pki.certificate.read_text() + pki.key.read_text())

    public = _key(pki.user_key)
    user = Identity(
        Kind.USER,
        "alice",
        CLUSTER,
        roles=("access", "editor"),
        traits={"logins": ("alice", "root"), "db_users": ("alice",), "db_names": ("orders",)},
        principals=("alice", "root"),
        expires=until,
    )
    pki.user_certificate.write_text(issue_user(users, public, user, now))
    return pki


def _key(path: Path) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
