"""Key pairs that a process makes for itself, the certificates it got for them, and the files they live in.

Belongs here: making keys, `data_dir/identity/<role>.{crt,key,ssh-cert.pub}`, and the client's TLS context made of them.
Issuing certificates does not: that takes an authority, which only the auth service has.
"""

import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from monoport.auth.authorities import TrustedCas
from monoport.errors import Failure

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A fresh P-256 key: PKCS#8 PEM, SPKI PEM, and the same public key as an OpenSSH line."""

    private: str
    public: str
    ssh_public: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process shows and whom it believes, for talking to the auth service of one cluster.

    Args:
        certificate: X.509 chain, PEM.
        key: PKCS#8, PEM.
        cas: the cluster, and the host CAs that may vouch for its auth service.
    """

    certificate: str
    key: str
    cas: TrustedCas

    @property
    def cluster(self) -> str:
        """The cluster's name, which is the server's name in TLS."""
        return self.cas.cluster

    def context(self, *alpn: str) -> ssl.SSLContext:
        """A TLS 1.3 client context that offers these protocols; raises Failure if certificate and key do not fit."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(cadata="\n".join(self.cas.host))
            load_chain(context, self.certificate, self.key)
        except ssl.SSLError as error:
            raise Failure(f"the certificate for {self.cluster} cannot be used: {error.reason or error}") from error
        if alpn:
            context.set_alpn_protocols(alpn)
        return context


def auth_alpn(cluster: str) -> str:
    """The ALPN name by which any proxy of the cluster passes a connection on to its auth service (RFD 39).

    A name that does not fit into ALPN's 255 octets or into ASCII goes as hex.
    """
    plain = f"teleport-auth@{cluster}"
    if plain.isascii() and len(plain) <= 255:
        return plain
    return f"teleport-auth@{cluster.encode().hex()}.teleport.cluster.local"


def generate() -> KeyPair:
    """Makes a P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    return KeyPair(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode(),
        public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode(),
    )


def load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Gives a context its certificate without writing the key to a disk.

    The ssl module reads only files; one in memory, named through /proc, will do on Linux.
    """
    memory = os.memfd_create("monoport-key", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(f"{key}\n{certificate}".encode())
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)


def write_private(path: Path, text: str) -> None:
    """Replaces a file in one step, readable by its owner only; a reader sees the old text or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), PRIVATE_FILE)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def identity_files(data_dir: Path, role: str) -> tuple[Path, Path, Path]:
    """The certificate, the key and the SSH certificate of one of this process's roles."""
    folder = data_dir / "identity"
    return folder / f"{role}.crt", folder / f"{role}.key", folder / f"{role}.ssh-cert.pub"
