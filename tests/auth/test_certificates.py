"""Certificates: their profiles, as cryptography reads them and as openssl, ssh-keygen and asyncssh do."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from monoport.access.identity import NO_LOGIN, Destination, Identity, IdentityError, Kind, from_ssh, from_x509
from monoport.auth.authorities import CA_LIFETIME, CLOCK_SKEW, Authorities, AuthorityError, CaKind, generate
from monoport.auth.certificates import (
    CertificateError,
    issue_database_client,
    issue_database_server,
    issue_host,
    issue_host_ssh,
    issue_user,
    issue_user_ssh,
)
from monoport.auth.publickeys import load_key, load_ssh_key

NOW = datetime.now(UTC).replace(microsecond=0)  # openssl verifies against the system clock
LATER = NOW + timedelta(hours=12)
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


def pem_of(key) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def line_of(key) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


PEM, LINE = pem_of(KEY), line_of(KEY)

ALICE = Identity(
    Kind.USER,
    "alice",
    "example.com",
    ("access",),
    {"logins": ("root", "alice")},
    ("root", "alice"),
    expires=LATER,
    destination=Destination("db", "orders", "postgres", "reader", "shop"),
    login_ip="192.0.2.1",
)
WEB = Identity(Kind.HOST, "h1", "example.com", ("node",), {}, ("h1", "web", "web.example.com"), expires=LATER)


@pytest.fixture(scope="module")
def cas():
    return Authorities("example.com", {kind: (generate(kind, "example.com", NOW),) for kind in CaKind})


@pytest.fixture(scope="module")
def issued(cas):
    """Every profile, with its CA and what openssl calls its purpose."""
    return {
        "user": (cas.user, issue_user(cas.user, PEM, ALICE, NOW), ["sslclient"]),
        "host": (cas.host, issue_host(cas.host, PEM, WEB, NOW), ["sslclient", "sslserver"]),
        "db": (cas.db, issue_database_server(cas.db, PEM, ["db.local", "127.0.0.1"], NOW, LATER), ["sslserver"]),
        "dbclient": (
            cas.dbclient,
            issue_database_client(cas.dbclient, PEM, "reader", NOW, LATER, database="orders"),
            ["sslclient"],
        ),
    }


def parsed(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


@pytest.mark.parametrize("profile", ["user", "host", "db", "dbclient"])
def test_openssl_verifies_each_profile_for_its_purposes_and_no_other(issued, profile, tmp_path: Path, need):
    ca, pem, purposes = issued[profile]
    (tmp_path / "ca.pem").write_text(ca.pem)
    (tmp_path / "cert.pem").write_text(pem)
    verify = [need("openssl"), "verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.pem")]
    for purpose in ("sslclient", "sslserver"):
        run = subprocess.run(
            [*verify, "-purpose", purpose, str(tmp_path / "cert.pem")], capture_output=True, text=True, check=False
        )
        assert (run.returncode == 0) is (purpose in purposes), run.stderr


@pytest.mark.parametrize("profile", ["user", "host", "db", "dbclient"])
def test_openssl_refuses_each_profile_under_every_other_ca(issued, profile, tmp_path: Path, need):
    mine, pem, _ = issued[profile]
    (tmp_path / "others.pem").write_text("".join(ca.pem for ca, _, _ in issued.values() if ca is not mine))
    (tmp_path / "cert.pem").write_text(pem)
    run = subprocess.run(
        [need("openssl"), "verify", "-CAfile", str(tmp_path / "others.pem"), str(tmp_path / "cert.pem")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "unable to get local issuer certificate" in run.stderr


@pytest.mark.parametrize("profile", ["user", "host", "db", "dbclient"])
def test_identifiers_usages_and_validity(issued, profile):
    ca, pem, purposes = issued[profile]
    certificate = parsed(pem)
    assert certificate.not_valid_before_utc == NOW - CLOCK_SKEW
    assert certificate.not_valid_after_utc == LATER
    get = certificate.extensions.get_extension_for_class
    ca_ski = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == ca_ski.digest
    assert get(x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(KEY)
    assert get(x509.BasicConstraints).critical
    assert not get(x509.BasicConstraints).value.ca
    assert get(x509.KeyUsage).critical
    usage = get(x509.KeyUsage).value
    assert usage.digital_signature
    assert {usage.key_cert_sign, usage.key_encipherment, usage.crl_sign} == {False}
    oids = {"sslclient": ExtendedKeyUsageOID.CLIENT_AUTH, "sslserver": ExtendedKeyUsageOID.SERVER_AUTH}
    assert set(get(x509.ExtendedKeyUsage).value) == {oids[purpose] for purpose in purposes}


def test_identities_come_back_from_their_certificates(cas, issued):
    trusted = cas.trusted()
    assert from_x509(parsed(issued["user"][1]), trusted) == ALICE
    assert from_x509(parsed(issued["host"][1]), trusted) == WEB
    for profile in ("db", "dbclient"):
        with pytest.raises(IdentityError, match="not issued by this cluster"):
            from_x509(parsed(issued[profile][1]), trusted)


def names(pem: str) -> list[str]:
    found = parsed(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_hosts_carry_their_names(cas, issued):
    assert names(issued["host"][1]) == ["h1", "web", "web.example.com"]
    assert names(issued["db"][1]) == ["db.local", "127.0.0.1"]
    proxy = Identity(Kind.HOST, "p1", "example.com", ("proxy", "auth"), {}, ("p1",), expires=LATER)
    wanted = ["Example.COM.", "*.db.example.com", "*.dial.teleport.cluster.local", "::1", "example.com", "my_host"]
    assert names(issue_host(cas.host, PEM, proxy, NOW, wanted)) == [
        "example.com", "*.db.example.com", "*.dial.teleport.cluster.local", "::1", "my_host",
    ]  # fmt: skip
    with pytest.raises(x509.ExtensionNotFound):
        names(issue_host(cas.host, PEM, WEB, NOW, []))


@pytest.mark.parametrize(
    "name",
    ["teleport.cluster.local", "Bootstrap.Teleport.Cluster.Local.", "*.dial.teleport.cluster.local", "EXAMPLE.com"],
)
def test_agents_cannot_have_the_names_of_the_proxy(cas, name):
    with pytest.raises(CertificateError, match="is a name of the proxy"):
        issue_host(cas.host, PEM, WEB, NOW, [name])
    if "*" not in name:
        pretender = Identity(Kind.HOST, "h1", "example.com", ("node",), {}, (name,), expires=LATER)
        with pytest.raises(CertificateError, match="is a name of the proxy"):
            issue_host_ssh(cas.host, LINE, pretender, NOW)


@pytest.mark.parametrize(
    "name", ["", "a b", "a..b", "-a", "a-", "x" * 64, "a." * 130 + "a", "é.com", "*", "a.*.b", "a/b"]
)
def test_what_is_no_name_is_refused(cas, name):
    with pytest.raises(CertificateError, match="not a DNS name or IP address"):
        issue_database_server(cas.db, PEM, ["ok", name], NOW, LATER)


def test_a_server_has_at_least_one_name_and_not_too_many(cas):
    with pytest.raises(CertificateError, match="between 1 and 512 names, not 0"):
        issue_database_server(cas.db, PEM, [], NOW, LATER)
    with pytest.raises(CertificateError, match="not 513"):
        issue_database_server(cas.db, PEM, [f"h{number}" for number in range(513)], NOW, LATER)


def common_name(pem: str) -> list[str]:
    return [str(one.value) for one in parsed(pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def test_a_database_client_is_named_after_the_database_user(cas, issued):
    assert common_name(issued["dbclient"][1]) == ["reader"]
    assert common_name(issue_database_client(cas.dbclient, PEM, "u" * 64, NOW, LATER, database="orders")) == ["u" * 64]
    with pytest.raises(CertificateError, match="65 characters, limit 64"):
        issue_database_client(cas.dbclient, PEM, "u" * 65, NOW, LATER, database="orders")
    attributes = [(one.oid, one.value) for one in parsed(issued["dbclient"][1]).subject]
    assert attributes == [
        (NameOID.ORGANIZATION_NAME, "example.com"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "orders"),
        (NameOID.COMMON_NAME, "reader"),
    ], "CN=reader,OU=orders,O=example.com, as PostgreSQL's clientname=DN has it"
    for name in ("", "d" * 65, "a\0b"):
        with pytest.raises((IdentityError, CertificateError)):
            issue_database_client(cas.dbclient, PEM, "reader", NOW, LATER, database=name)
    for user in ("", "a\0b", " a"):
        with pytest.raises(IdentityError):
            issue_database_client(cas.dbclient, PEM, user, NOW, LATER, database="orders")


def test_a_long_user_name_is_left_to_the_identity(cas):
    long = Identity(Kind.USER, "a" * 100, "example.com", expires=LATER)
    pem = issue_user(cas.user, PEM, long, NOW)
    assert common_name(pem) == []
    assert from_x509(parsed(pem), cas.trusted()) == long


def test_each_ca_signs_only_its_own_kind(cas):
    for wrong in (
        lambda: issue_user(cas.host, PEM, ALICE, NOW),
        lambda: issue_user(cas.user, PEM, WEB, NOW),
        lambda: issue_host(cas.user, PEM, WEB, NOW),
        lambda: issue_host(cas.host, PEM, ALICE, NOW),
        lambda: issue_user_ssh(cas.host, LINE, ALICE, NOW),
        lambda: issue_host_ssh(cas.host, LINE, ALICE, NOW),
        lambda: issue_database_server(cas.dbclient, PEM, ["a"], NOW, LATER),
        lambda: issue_database_client(cas.db, PEM, "a", NOW, LATER, database="orders"),
        lambda: issue_user(generate(CaKind.USER, "other.com", NOW), PEM, ALICE, NOW),
    ):
        with pytest.raises(CertificateError):
            wrong()
    with pytest.raises(AuthorityError):
        _ = cas.db.ssh_signer


def test_validity_ends_after_now_and_within_the_cas(cas):
    for when, said in ((NOW, "expired already"), (NOW + CA_LIFETIME + timedelta(days=1), "outlive the db CA")):
        with pytest.raises(CertificateError, match=said):
            issue_database_server(cas.db, PEM, ["a"], NOW, when)
    with pytest.raises(CertificateError, match="expired already"):
        issue_user_ssh(cas.user, LINE, ALICE, LATER)


# --- public keys

RSA = rsa.generate_private_key(65537, 2048).public_key()


@pytest.mark.parametrize(
    "key", [KEY, ec.generate_private_key(ec.SECP384R1()).public_key(), RSA,
            ed25519.Ed25519PrivateKey.generate().public_key()]
)  # fmt: skip
def test_strong_keys_of_every_kind_are_certified(cas, key, tmp_path, need):
    certificate = parsed(issue_host(cas.host, pem_of(key), WEB, NOW))
    assert certificate.public_key() == key
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_encipherment is (key is RSA)
    line = issue_user_ssh(cas.user, line_of(key), ALICE, NOW)
    assert from_ssh(line, cas.trusted()) == ALICE
    assert asyncssh.import_certificate(line).key == asyncssh.import_public_key(line_of(key))


def compressed_line() -> str:
    """A well-formed SSH key but for its point, in the form that cryptography does not implement."""
    blob = base64.b64decode(LINE.split()[1])
    return "ecdsa-sha2-nistp256 " + base64.b64encode(blob.replace(b"\0\0\0\x41\x04", b"\0\0\0\x41\x02")).decode()


def test_weak_and_malformed_keys_are_not(cas):
    weak = rsa.generate_private_key(65537, 1024).public_key()
    for key in (
        weak,
        ec.generate_private_key(ec.SECP192R1()).public_key(),
        dsa.generate_private_key(2048).public_key(),
    ):
        with pytest.raises(CertificateError, match="public key must be"):
            load_key(pem_of(key))
    with pytest.raises(CertificateError):
        load_ssh_key(line_of(weak))
    for text in ("", "x", b"\xff", PEM[:80], LINE):
        with pytest.raises(CertificateError, match="not a public key in PEM form"):
            load_key(text)
    for text in ("", "ssh-rsa", b"\xff", LINE[:60], PEM, compressed_line(), "ssh-ed448 AAAA"):
        with pytest.raises(CertificateError, match="not a line with an SSH public key"):
            load_ssh_key(text)
    with pytest.raises(CertificateError, match="limit 16384"):
        load_key("x" * 20000)


# --- OpenSSH


def keygen(line: str, tmp_path: Path, need) -> list[str]:
    (tmp_path / "id-cert.pub").write_text(line + "\n")
    run = subprocess.run(
        [need("ssh-keygen"), "-L", "-f", str(tmp_path / "id-cert.pub")], capture_output=True, text=True, check=True
    )
    return [row.strip() for row in run.stdout.splitlines()]


def test_ssh_keygen_reads_a_users_certificate(cas, tmp_path, need):
    rows = keygen(issue_user_ssh(cas.user, LINE, ALICE, NOW, forward_agent=True), tmp_path, need)
    assert "Type: ecdsa-sha2-nistp256-cert-v01@openssh.com user certificate" in rows
    assert 'Key ID: "alice@example.com"' in rows
    assert "Critical Options: (none)" in rows
    at = rows.index("Principals:")
    assert rows[at + 1 : at + 3] == ["root", "alice"]
    extensions = rows[rows.index("Extensions:") + 1 :]
    assert extensions[0].startswith("identity@monoport UNKNOWN OPTION: 0000")  # the value is an SSH string of its own
    assert extensions[1:] == ["permit-agent-forwarding", "permit-pty"]


def test_ssh_keygen_reads_a_hosts_certificate(cas, tmp_path, need):
    rows = keygen(issue_host_ssh(cas.host, LINE, WEB, NOW), tmp_path, need)
    assert "Type: ecdsa-sha2-nistp256-cert-v01@openssh.com host certificate" in rows
    at = rows.index("Principals:")
    assert rows[at + 1 : at + 4] == ["h1", "web", "web.example.com"]


@pytest.mark.parametrize("options", [{}, {"forward_agent": True}, {"port_forwarding": True}, {"x11_forwarding": True}])
def test_asyncssh_reads_the_options_that_roles_grant(cas, options):
    certificate = asyncssh.import_certificate(issue_user_ssh(cas.user, LINE, ALICE, NOW, **options))
    granted = {name for name, value in certificate.options.items() if value}
    expected = {"permit-pty"}
    expected |= {"permit-agent-forwarding"} if options.get("forward_agent") else set()
    expected |= {"permit-port-forwarding"} if options.get("port_forwarding") else set()
    expected |= {"permit-X11-forwarding"} if options.get("x11_forwarding") else set()
    assert granted == expected
    assert certificate.principals == ["root", "alice"]


def test_ssh_certificates_prove_identities_also_as_asyncssh_hands_them_over(cas):
    trusted = cas.trusted()
    for line, identity in (
        (issue_user_ssh(cas.user, LINE, ALICE, NOW), ALICE),
        (issue_host_ssh(cas.host, LINE, WEB, NOW), WEB),
    ):
        assert from_ssh(line, trusted) == identity
        assert from_ssh(asyncssh.import_certificate(line).public_data, trusted) == identity


def test_a_user_without_logins_gets_a_login_that_nobody_has(cas):
    nobody = Identity(Kind.USER, "bob", "example.com", expires=LATER)
    line = issue_user_ssh(cas.user, LINE, nobody, NOW)
    assert asyncssh.import_certificate(line).principals == [NO_LOGIN]
    assert from_ssh(line, cas.trusted()) == nobody


def test_a_host_without_names_gets_none(cas):
    nameless = Identity(Kind.HOST, "h1", "example.com", ("node",), expires=LATER)
    with pytest.raises(CertificateError, match="needs a name"):
        issue_host_ssh(cas.host, LINE, nameless, NOW)


def test_a_certificate_whose_identity_is_too_large_is_not_issued(cas):
    large = Identity(Kind.USER, "a", "example.com", traits={"x": tuple(f"{n:0250}" for n in range(100))}, expires=LATER)
    with pytest.raises(IdentityError, match="limit"):
        issue_user(cas.user, PEM, large, NOW)


def test_the_largest_identity_still_fits_both_certificates(cas):
    large = Identity(
        Kind.USER, "a", "example.com", traits={"x": tuple(f"{n:0250}" for n in range(63))}, principals=("root",),
        expires=LATER,
    )  # fmt: skip
    trusted = cas.trusted()
    assert from_x509(parsed(issue_user(cas.user, PEM, large, NOW)), trusted) == large
    assert from_ssh(issue_user_ssh(cas.user, LINE, large, NOW), trusted) == large
