"""CAs: distinct, kept, shared; and what others are told to trust."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from monoport.auth.authorities import (
    CA_LIFETIME,
    CLOCK_SKEW,
    AuthorityError,
    CaKind,
    TrustedCas,
    ensure,
    generate,
    load,
    pin,
)
from monoport.auth.storage.memory import MemoryStorage

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def cas():
    return {kind: generate(kind, "example.com", NOW) for kind in CaKind}


def test_each_ca_names_cluster_and_kind_and_no_two_are_alike(cas):
    subjects = {ca.certificate.subject.rfc4514_string() for ca in cas.values()}
    assert len(subjects) == len(CaKind)
    for kind, ca in cas.items():
        assert f"CN=monoport {kind} CA,O=example.com" in ca.certificate.subject.rfc4514_string()
    again = generate(CaKind.USER, "example.com", NOW)
    assert again.certificate.subject != cas[CaKind.USER].certificate.subject


def test_a_ca_signs_certificates_and_nothing_else_for_ten_years(cas):
    for ca in cas.values():
        certificate = ca.certificate
        assert certificate.not_valid_before_utc == NOW - CLOCK_SKEW
        assert certificate.not_valid_after_utc == NOW + CA_LIFETIME
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert usage.value.crl_sign
        assert not usage.value.digital_signature
        ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        aki = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert aki.key_identifier == ski.digest


def test_only_users_and_hosts_have_ssh_cas_with_keys_of_their_own(cas):
    for kind, ca in cas.items():
        if kind in (CaKind.USER, CaKind.HOST):
            assert ca.ssh_line.startswith("ecdsa-sha2-nistp256 ")
            assert ca.ssh_signer.private_numbers() != ca.key.private_numbers()
        else:
            with pytest.raises(AuthorityError, match="signs no SSH certificates"):
                _ = ca.ssh_line


def test_a_pin_is_the_hash_of_the_public_key_as_openssl_computes_it(cas, need):
    certificate = cas[CaKind.HOST].certificate
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert pin(certificate) == "sha256:" + hashlib.sha256(spki).hexdigest()
    assert pin(cas[CaKind.HOST].pem) == pin(certificate)
    assert pin(certificate) in repr(cas[CaKind.HOST])
    pem = certificate.public_bytes(Encoding.PEM)
    key = subprocess.run([need("openssl"), "x509", "-noout", "-pubkey"], input=pem, capture_output=True, check=True)
    der = subprocess.run(
        [need("openssl"), "pkey", "-pubin", "-outform", "DER"], input=key.stdout, capture_output=True, check=True
    )
    assert hashlib.sha256(der.stdout).hexdigest() == pin(certificate).removeprefix("sha256:")
    with pytest.raises(AuthorityError, match="cannot be read"):
        pin("no certificate")


# --- keeping them


async def test_cas_are_made_once_and_loaded_ever_after():
    store = MemoryStorage()
    assert await load(store, "example.com") is None
    made = await ensure(store, "example.com", lambda: NOW)
    again = await ensure(store, "example.com", lambda: NOW + timedelta(days=1))
    assert again.trusted() == made.trusted()
    for kind in CaKind:
        assert again.signing(kind).key.private_numbers() == made.signing(kind).key.private_numbers()
        assert again.signing(kind).cluster == "example.com"
    assert (again.user, again.host, again.db, again.dbclient) == tuple(
        again.signing(kind) for kind in (CaKind.USER, CaKind.HOST, CaKind.DB, CaKind.DBCLIENT)
    )
    assert again.pins == (pin(made.host.certificate),)


async def test_two_services_that_begin_at_once_end_with_the_same_cas():
    store = MemoryStorage()

    together = asyncio.Barrier(2)

    class Slow:  # both see that nothing is there before either writes
        async def get(self, key):
            item = await store.get(key)
            await together.wait()
            return item

        create = staticmethod(store.create)

    slow = Slow()
    one, two = await asyncio.gather(ensure(slow, "c", lambda: NOW), ensure(slow, "c", lambda: NOW))
    assert one.trusted() == two.trusted()


async def test_another_clusters_cas_are_not_taken():
    store = MemoryStorage()
    await ensure(store, "one.com", lambda: NOW)
    with pytest.raises(AuthorityError, match=r"holds the CAs of cluster one\.com, not of two\.com"):
        await load(store, "two.com")


async def test_cas_that_vanish_while_they_are_read_are_an_error():
    class Vanishing(MemoryStorage):
        reads = 0

        async def get(self, key):
            self.reads += 1
            return await super().get(key) if self.reads <= len(CaKind) else None

    with pytest.raises(AuthorityError, match="were removed"):
        await ensure(Vanishing(), "c", lambda: NOW)


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.pop("cluster"),
        lambda document: document.pop("authorities"),
        lambda document: document.update(authorities=[]),
        lambda document: document.update(authorities=[{}]),
        lambda document: document["authorities"][0].update(certificate="x"),
        lambda document: document["authorities"][0].update(key="x"),
        lambda document: document["authorities"][0].update(key=RSA_KEY),
        lambda document: document["authorities"][0].update(ssh_key=None),
    ],
)
async def test_damaged_cas_are_named_and_never_replaced(damage):
    store = MemoryStorage()
    await ensure(store, "c", lambda: NOW)
    document = json.loads((await store.get("/authorities/user")).value)
    damage(document)
    revision = await store.put("/authorities/user", json.dumps(document).encode())
    with pytest.raises(AuthorityError):
        await ensure(store, "c", lambda: NOW)
    assert (await store.get("/authorities/user")).revision == revision


def _rsa_key() -> str:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


RSA_KEY = _rsa_key()


# --- telling others


def test_trusted_cas_survive_json_as_object_and_as_text(cas):
    two = tuple(generate(CaKind.HOST, "example.com", NOW).pem for _ in range(2))
    trusted = TrustedCas(
        "example.com",
        host=two,
        user=(cas[CaKind.USER].pem,),
        ssh_user=(cas[CaKind.USER].ssh_line,),
        ssh_host=(cas[CaKind.HOST].ssh_line,),
    )
    assert TrustedCas.from_json(trusted.to_json()) == trusted
    assert TrustedCas.from_json(json.dumps(trusted.to_json())) == trusted
    assert TrustedCas.from_json(json.dumps(trusted.to_json()).encode()) == trusted
    assert "PRIVATE" not in json.dumps(trusted.to_json())


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"cluster": ""},
        {"cluster": 3},
        {"cluster": "c", "host": "x"},
        {"cluster": "c", "host": [3]},
        {"cluster": "c", "host": ["x"]},
        {"cluster": "c", "user": ["-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"]},
        {"cluster": "c", "ssh_user": ["ssh-rsa AAAA"]},
        {"cluster": "c", "ssh_user": ["ssh-ed448 AAAA"]},
        {"cluster": "c", "ssh_host": ["LINE\n@cert-authority * evil"]},
        "not json",
        "[]",
        b"[" * 3000,
        " " * (1024 * 1024 + 1),
    ],
)
def test_malformed_trust_is_refused(cas, document):
    if isinstance(document, dict) and "ssh_host" in document:
        document = document | {"ssh_host": [cas[CaKind.HOST].ssh_line + document["ssh_host"][0][4:]]}
    with pytest.raises(AuthorityError):
        TrustedCas.from_json(document)
