"""`https_keypairs`: new files are shown with the next handshake, broken ones never."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from monoport.config import Config
from monoport.daemon.datadir import open_data_directory
from monoport.daemon.frontdoor import Proxy
from monoport.daemon.member import member
from monoport.routing.outcome import Ask, Show, Tls, Trust

from ..scenarios.cluster import PUBLIC  # noqa: TID252 # tests are no package
from .conftest import Auth

WEB = Tls(Show.PUBLIC, Ask.NONE, Trust.NONE, None, tls12=True)


@dataclass
class Files:
    """A certificate and its key, as an ACME client leaves them."""

    certificate: Path
    key: Path
    written: int = 0

    def write(self, issuer: str, *, certificate: bool = True, key: bool = True) -> None:
        """Replace them by new ones, or one of them alone."""
        private = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
        made = (
            x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(PUBLIC)]), critical=False)
            .sign(private, hashes.SHA256())
        )
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        if certificate:
            self.replace(self.certificate, made.public_bytes(serialization.Encoding.PEM))
        if key:
            self.replace(self.key, pem)

    def replace(self, path: Path, data: bytes) -> None:
        """As a rename does, at a later time than before whatever the clock's steps."""
        self.written += 1
        path.write_bytes(data)
        os.utime(path, ns=(self.written * 10**9,) * 2)


@dataclass
class Door:
    """A proxy, and what its web shows."""

    proxy: Proxy
    files: Files

    def shown(self) -> str:
        """The common name on the certificate of a handshake that begins now."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self.proxy.contexts.context(WEB, PUBLIC).wrap_bio(to_server, to_client, server_side=True)
        ours = client.wrap_bio(to_client, to_server, server_hostname=PUBLIC)
        for end in (ours, server, ours):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        parsed = x509.load_der_x509_certificate(ours.getpeercert(binary_form=True) or b"")
        return str(parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


@pytest.fixture
async def door(auth: Auth, configured: Callable[..., Config], tmp_path: Path) -> AsyncIterator[Door]:
    files = Files(tmp_path / "web.crt", tmp_path / "web.key")
    files.write("first")
    config = configured(proxy=f", https_keypairs: [{{cert_file: {files.certificate}, key_file: {files.key}}}]")
    data, lock = open_data_directory(config.teleport.data_dir)
    await auth.start()
    async with member("proxy", config, data, auth.local) as joined:
        yield Door(Proxy(config, joined), files)
    os.close(lock)


async def test_new_files_are_shown_with_the_next_handshake(door: Door) -> None:
    assert door.shown() == "first"
    door.files.write("second")
    assert door.shown() == "first"
    door.proxy.look()
    assert door.shown() == "second"
    door.proxy.renewed()  # this proxy's own certificate is another matter
    assert door.shown() == "second"


async def test_unchanged_files_are_not_read(door: Door) -> None:
    before = door.proxy.contexts.context(WEB, PUBLIC)
    door.proxy.look()
    assert door.proxy.contexts.context(WEB, PUBLIC) is before


@pytest.mark.parametrize("broken", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize("which", ["certificate", "key"])
async def test_a_broken_file_keeps_the_old_ones(door: Door, which: str, broken: bytes) -> None:
    path: Path = getattr(door.files, which)
    door.files.replace(path, broken)
    door.proxy.look()
    assert door.shown() == "first"

    door.files.write("repaired")
    door.proxy.look()
    assert door.shown() == "repaired"


async def test_files_that_are_replaced_one_after_the_other(door: Door) -> None:
    """A look between the two finds a pair that does not fit."""
    door.files.write("half", key=False)
    door.proxy.look()
    assert door.shown() == "first"
    door.files.write("whole")
    door.proxy.look()
    assert door.shown() == "whole"


async def test_files_that_are_gone_for_a_while(door: Door) -> None:
    kept = door.files.certificate.read_bytes()
    door.files.certificate.unlink()
    door.proxy.look()
    assert door.shown() == "first"
    door.files.replace(door.files.certificate, kept)
    door.proxy.look()
    assert door.shown() == "first"
