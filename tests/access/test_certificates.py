"""Reading identities from X.509 and OpenSSH certificates, honest and hostile."""

from __future__ import annotations

import base64
from datetime import timedelta
from functools import cache
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from monoport.access.identity import (
    EXTENSION_OID,
    NO_LOGIN,
    SSH_EXTENSION,
    IdentityError,
    encode,
    extension,
    from_ssh,
    from_x509,
)
from monoport.auth.authorities import CaKind, TrustedCas, generate

CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
USER, HOST = SSHCertificateType.USER, SSHCertificateType.HOST


@cache
def key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def cas(now):
    made = {kind: generate(kind, "example.com", now - timedelta(days=1)) for kind in CaKind}
    user, host = made[CaKind.USER], made[CaKind.HOST]
    trusted = TrustedCas(
        "example.com",
        host=(generate(CaKind.HOST, "example.com", now).pem, host.pem),
        user=(generate(CaKind.USER, "example.com", now).pem, user.pem),
        ssh_user=(generate(CaKind.USER, "example.com", now).ssh_line, user.ssh_line),
        ssh_host=(host.ssh_line + " a comment",),
    )
    return SimpleNamespace(user=user, host=host, db=made[CaKind.DB], dbclient=made[CaKind.DBCLIENT], trusted=trusted)


def certificate(ca, now, *extensions, begins=timedelta(minutes=-1), ends=timedelta(hours=1), eku=CLIENT, is_ca=False):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(ca.certificate.subject)
        .public_key(key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key().public_key()), critical=False)
    )
    if eku is not None:
        builder = builder.add_extension(eku, critical=False)
    for one, critical in extensions:
        builder = builder.add_extension(one, critical=critical)
    return builder.sign(ca.key, hashes.SHA256())


def test_a_users_certificate_proves_its_user(make, cas, now):
    assert from_x509(certificate(cas.user, now, (extension(make.user()), False)), cas.trusted, now) == make.user()
    assert from_x509(certificate(cas.user, now, (extension(make.user()), True)), cas.trusted, now) == make.user()


@pytest.mark.parametrize("count", [0, 1, 2, 10])  # lengths of the JSON on both sides of each form of DER length
def test_identities_of_every_length_are_carried(make, cas, now, count):
    alice = make.user(
        traits={"logins": ("x" * 100,) * count}, roles=(), principals=(), expires=now + timedelta(hours=1)
    )
    assert from_x509(certificate(cas.user, now, (extension(alice), False)), cas.trusted, now) == alice


def test_a_hosts_certificate_proves_its_host(make, cas, now):
    cert = certificate(cas.host, now, (extension(make.host()), False))
    assert from_x509(cert, cas.trusted, now) == make.host()


def test_without_an_instant_the_system_clock_decides(make, cas, now):
    cert = certificate(cas.user, now, (extension(make.user()), False))
    with pytest.raises(IdentityError, match="not valid before"):  # the fixed instant of these tests lies ahead
        from_x509(cert, cas.trusted)
    line = ssh(cas.user, make.user(), now)
    with pytest.raises(IdentityError, match="not valid before"):
        from_ssh(line, cas.trusted)


def test_no_ca_vouches_for_another_kind(make, cas, now):
    with pytest.raises(IdentityError, match="a host CA cannot vouch for a user"):
        from_x509(certificate(cas.host, now, (extension(make.user()), False)), cas.trusted, now)
    with pytest.raises(IdentityError, match="a user CA cannot vouch for a host"):
        from_x509(certificate(cas.user, now, (extension(make.host()), False)), cas.trusted, now)
    for ca in (cas.db, cas.dbclient, generate(CaKind.USER, "example.com", now)):
        with pytest.raises(IdentityError, match="not issued by this cluster"):
            from_x509(certificate(ca, now, (extension(make.user()), False)), cas.trusted, now)


def test_no_cluster_vouches_for_another(make, cas, now):
    cert = certificate(cas.user, now, (extension(make.user(cluster="other.com")), False))
    with pytest.raises(IdentityError, match=r"the CAs of example\.com cannot vouch for alice@other\.com"):
        from_x509(cert, cas.trusted, now)


def test_a_certificate_whose_issuer_is_only_named_is_refused(make, cas, now):
    forged = SimpleNamespace(certificate=cas.user.certificate, key=key())
    with pytest.raises(IdentityError, match="not issued by this cluster"):
        from_x509(certificate(forged, now, (extension(make.user()), False)), cas.trusted, now)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"begins": timedelta(seconds=1)}, "not valid before"),
        ({"begins": timedelta(hours=-2), "ends": timedelta(0)}, "expired at"),
        ({"eku": None}, "not for clients"),
        ({"eku": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])}, "not for clients"),
        ({"is_ca": True}, "a CA's, not a caller's"),
    ],
)
def test_validity_and_usage_must_hold(make, cas, now, options, said):
    with pytest.raises(IdentityError, match=said):
        from_x509(certificate(cas.user, now, (extension(make.user()), False), **options), cas.trusted, now)


def raw(data: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(EXTENSION_OID, data)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x04", b"\x04\x05{}", b"\x04\x01{}", b"\x0c\x02{}", b"\x04\x84\0\0\0\x02{}", b"\x04\x80{}",
     b"\x04\x82\x7f\xff{}", b"\x04\x82\x7f\xff" + b" " * 0x7FFF, b"\x04\x81", b"\x04\x02{}"],
)  # fmt: skip
def test_malformed_payloads_are_refused(cas, now, data):
    with pytest.raises(IdentityError):
        from_x509(certificate(cas.user, now, (raw(data), False)), cas.trusted, now)


def test_a_certificate_without_an_identity_is_refused(cas, now):
    with pytest.raises(IdentityError, match="carries no identity"):
        from_x509(certificate(cas.user, now), cas.trusted, now)


def test_unknown_extensions_are_refused_only_when_critical(make, cas, now):
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    identity = (extension(make.user()), False)
    assert from_x509(certificate(cas.user, now, (other, False), identity), cas.trusted, now) == make.user()
    with pytest.raises(IdentityError, match="critical extension"):
        from_x509(certificate(cas.user, now, (other, True), identity), cas.trusted, now)


def test_malformed_known_extensions_are_refused(make, cas, now):
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x80")  # subjectAltName
    with pytest.raises(IdentityError, match="malformed extensions"):
        from_x509(certificate(cas.user, now, (broken, False)), cas.trusted, now)


def test_a_certificate_with_a_flipped_bit_is_refused(make, cas, now):
    der = bytearray(certificate(cas.user, now, (extension(make.user()), False)).public_bytes(Encoding.DER))
    der[der.index(b"alice")] ^= 1
    with pytest.raises(IdentityError, match="not issued by this cluster"):
        from_x509(x509.load_der_x509_certificate(bytes(der)), cas.trusted, now)


# --- OpenSSH


def ssh(ca, identity, now, **changes):
    options = {
        "kind": USER,
        "principals": [principal.encode() for principal in identity.principals],
        "begins": int(now.timestamp()) - 60,
        "ends": int(now.timestamp()) + 3600,
        "extensions": [(b"permit-pty", b""), (SSH_EXTENSION.encode(), encode(identity))],
        "critical": [],
        "key": None,
    } | changes
    builder = (
        SSHCertificateBuilder()
        .public_key(key().public_key())
        .serial(1)
        .type(options["kind"])
        .key_id(b"any")
        .valid_after(options["begins"])
        .valid_before(options["ends"])
    )
    if options["principals"]:
        builder = builder.valid_principals(options["principals"])
    else:
        builder = builder.valid_for_all_principals()
    for name, value in options["extensions"]:
        builder = builder.add_extension(name, value)
    for name, value in options["critical"]:
        builder = builder.add_critical_option(name, value)
    return builder.sign(options["key"] or ca.ssh_key).public_bytes().decode()


def test_an_ssh_certificate_proves_its_user_or_host(make, cas, now):
    line = ssh(cas.user, make.user(), now)
    assert from_ssh(line, cas.trusted, now) == make.user()
    assert from_ssh(line + " comment\n", cas.trusted, now) == make.user()
    assert from_ssh(line.encode(), cas.trusted, now) == make.user()
    assert from_ssh(base64.b64decode(line.split()[1]), cas.trusted, now) == make.user()
    assert from_ssh(ssh(cas.host, make.host(), now, kind=HOST), cas.trusted, now) == make.host()


def test_a_user_without_logins_names_one_that_nobody_has(make, cas, now):
    alice = make.user(principals=())
    assert from_ssh(ssh(cas.user, alice, now, principals=[NO_LOGIN.encode()]), cas.trusted, now) == alice
    with pytest.raises(IdentityError, match="no principals"):
        from_ssh(ssh(cas.user, alice, now), cas.trusted, now)


def _line(public_key) -> str:
    return public_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"principals": [b"root"]}, "principals are not those"),
        ({"principals": [b"root", b"alice", b"bob"]}, "principals are not those"),
        ({"principals": [b"root", b"alice,bob"]}, "principals are not those"),
        ({"principals": [b"root", b"alice", b""]}, "principals are not those"),
        ({"principals": [b"root", b"\xff"]}, "principals are not those"),
        ({"critical": [(b"force-command", b"ls")]}, "critical options"),
        ({"critical": [(b"unheard-of", b"")]}, "critical options"),
        ({"extensions": []}, "carries no identity"),
        ({"extensions": [(SSH_EXTENSION.encode(), b"")]}, "carries no identity"),
        ({"extensions": [(SSH_EXTENSION.encode(), b"{}")]}, "identity has an unknown version"),
        ({"ends": 2**64 - 1}, "no end of validity"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "not signed by a user CA"),
        ({"kind": HOST}, "not signed by a host CA"),
    ],
)
def test_hostile_ssh_certificates_are_refused(make, cas, now, changes, said):
    with pytest.raises(IdentityError, match=said):
        from_ssh(ssh(cas.user, make.user(), now, **changes), cas.trusted, now)


def test_ssh_validity_must_hold(make, cas, now):
    line = ssh(cas.user, make.user(), now)
    with pytest.raises(IdentityError, match="expired at"):
        from_ssh(line, cas.trusted, now + timedelta(hours=1))
    with pytest.raises(IdentityError, match="not valid before"):
        from_ssh(line, cas.trusted, now - timedelta(minutes=2))


def test_no_ssh_ca_vouches_for_another_kind(make, cas, now):
    with pytest.raises(IdentityError, match="a user CA cannot vouch for a host"):
        from_ssh(ssh(cas.user, make.host(), now), cas.trusted, now)
    with pytest.raises(IdentityError, match="a host CA cannot vouch for a user"):
        from_ssh(ssh(cas.host, make.user(), now, kind=HOST), cas.trusted, now)
    with pytest.raises(IdentityError, match="not signed by a user CA"):
        from_ssh(ssh(cas.host, make.user(), now), cas.trusted, now)


def test_a_flipped_bit_breaks_the_signature(make, cas, now):
    blob = bytearray(base64.b64decode(ssh(cas.user, make.user(), now).split()[1]))
    blob[blob.index(b'"name":"alice"') + 9] ^= 1
    with pytest.raises(IdentityError, match="bad signature"):
        from_ssh(bytes(blob), cas.trusted, now)


def test_what_is_no_certificate_is_refused(cas, now):
    with pytest.raises(IdentityError, match="a plain key is not a certificate"):
        from_ssh(_line(key().public_key()), cas.trusted, now)
    with pytest.raises(IdentityError, match="limit 65536"):
        from_ssh(b"x" * 70000, cas.trusted, now)
    with pytest.raises(IdentityError, match="not an OpenSSH certificate"):
        from_ssh(_line(rsa.generate_private_key(65537, 2048).public_key())[:60], cas.trusted, now)


@pytest.mark.parametrize("where", ["key", "signer"])
def test_compressed_points_are_refused_like_any_other_malformed_key(cas, signed, where, now):
    point = b"\0\0\0\x41\x04"
    at = signed.index(point) if where == "key" else signed.rindex(point)
    changed = signed[: at + 4] + b"\x02" + signed[at + 5 :]
    with pytest.raises(IdentityError):
        from_ssh(changed, cas.trusted, now)


@given(st.binary(max_size=300) | st.text(max_size=100) | st.binary(max_size=100).map(lambda data: b"\0\0\0\7" + data))
def test_garbage_is_no_ssh_certificate(cas, now, data):
    with pytest.raises(IdentityError):
        from_ssh(data, cas.trusted, now)


@pytest.fixture(scope="module")
def signed(make, cas, now):
    return base64.b64decode(ssh(cas.user, make.user(), now).split()[1])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damaged_ssh_certificate_raises_anything_else(make, cas, now, signed, data):
    blob = bytearray(signed)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(blob[: data.draw(st.integers(0, len(blob)))]) if data.draw(st.booleans()) else bytes(blob)
    try:
        found = from_ssh(damaged, cas.trusted, now)
    except IdentityError:
        return
    assert found == make.user()  # nothing that is signed can have changed
