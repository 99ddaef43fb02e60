"""What the CAs sign: a public key in, a certificate out.

Belongs here: the profile of every certificate (names, usages, validity). Does not: who may have one (service.py),
private keys of anyone but the CAs: they never leave the machine they were made on.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    SSHCertificateBuilder,
    SSHCertificateType,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from monoport.access.claims import check_name
from monoport.access.identity import NO_LOGIN, SSH_EXTENSION, Identity, Kind, encode, extension
from monoport.auth.authorities import CLOCK_SKEW, Authority, CaKind
from monoport.auth.publickeys import CertificateError, PublicKey, load_key, load_ssh_key

MAX_NAMES: Final = 512  # names of one certificate: a proxy's holds every application's
COMMON_NAME: Final = 64  # characters, RFC 5280 appendix A (ub-common-name, ub-organizational-unit-name)
RESERVED: Final = "teleport.cluster.local"  # names under it mean routes of the proxy; only proxies may show them


def issue_user(ca: Authority, public_key: str | bytes, identity: Identity, now: datetime) -> str:
    """Return a user's X.509 certificate as PEM, for TLS clients only, valid until `identity.expires`.

    Args:
        ca: the user CA.
        public_key: PEM, SubjectPublicKeyInfo.
        identity: what it shall prove.
        now: UTC.

    Raises:
        CertificateError: if CA, key, identity and validity do not fit.
    """
    _check_kinds(ca, CaKind.USER, identity, Kind.USER)
    builder = _leaf(ca, load_key(public_key), _subject(identity.name, ca.cluster), now, identity.expires)
    builder = builder.add_extension(_CLIENT, critical=False).add_extension(extension(identity), critical=False)
    return _sign(ca, builder)


def issue_host(
    ca: Authority, public_key: str | bytes, identity: Identity, now: datetime, names: Sequence[str] | None = None
) -> str:
    """Return a host's X.509 certificate as PEM, for both sides of TLS, valid until `identity.expires`.

    Args:
        ca: the host CA.
        public_key: PEM, SubjectPublicKeyInfo.
        identity: what it shall prove.
        now: UTC.
        names: DNS names (wildcards too) and IP addresses; `identity.principals` when omitted.

    Raises:
        CertificateError: if CA, key, identity and validity do not fit, or an agent asks for a proxy's names.
    """
    _check_kinds(ca, CaKind.HOST, identity, Kind.HOST)
    names = identity.principals if names is None else names
    _check_reserved(ca, identity, names)
    builder = _leaf(ca, load_key(public_key), _subject(identity.name, ca.cluster), now, identity.expires)
    builder = builder.add_extension(_BOTH, critical=False).add_extension(extension(identity), critical=False)
    if names:
        builder = builder.add_extension(_alternative_names(names), critical=False)
    return _sign(ca, builder)


def issue_database_server(
    ca: Authority, public_key: str | bytes, hosts: Sequence[str], now: datetime, expires: datetime
) -> str:
    """Return a database server's X.509 certificate as PEM, for TLS servers only.

    Args:
        ca: the database CA.
        public_key: PEM, SubjectPublicKeyInfo.
        hosts: DNS names and IP addresses, at least one.
        now: UTC.
        expires: UTC.

    Raises:
        CertificateError: if CA, key, names and validity do not fit.
    """
    _check_ca(ca, CaKind.DB)
    builder = _leaf(ca, load_key(public_key), _subject(hosts[0] if hosts else "", ca.cluster), now, expires)
    builder = builder.add_extension(_SERVER, critical=False).add_extension(_alternative_names(hosts), critical=False)
    return _sign(ca, builder)


def issue_database_client(
    ca: Authority, public_key: str | bytes, user: str, now: datetime, expires: datetime, *, database: str
) -> str:
    """Return an agent's X.509 certificate to a database as PEM, for TLS clients only.

    Its common name is the database user, its organizational unit the database, so that a server can tell apart those
    who may be the same user elsewhere.

    Args:
        ca: the database client CA.
        public_key: PEM, SubjectPublicKeyInfo.
        user: database user, at most `COMMON_NAME` characters: servers compare it whole.
        now: UTC.
        expires: UTC.
        database: name under which it is registered, at most `COMMON_NAME` characters.

    Raises:
        CertificateError: if CA, key, names and validity do not fit.
    """
    _check_ca(ca, CaKind.DBCLIENT)
    check_name("database user", user)
    if len(user) > COMMON_NAME:
        raise CertificateError(f"database user has {len(user)} characters, limit {COMMON_NAME}")
    check_name("database", database)
    if len(database) > COMMON_NAME:
        raise CertificateError(f"database has {len(database)} characters, limit {COMMON_NAME}")
    builder = _leaf(ca, load_key(public_key), _subject(user, ca.cluster, database), now, expires)
    return _sign(ca, builder.add_extension(_CLIENT, critical=False))


def issue_user_ssh(
    ca: Authority,
    public_key: str | bytes,
    identity: Identity,
    now: datetime,
    *,
    forward_agent: bool = False,
    port_forwarding: bool = False,
    x11_forwarding: bool = False,
) -> str:
    """Return a user's OpenSSH certificate, one line; without logins it names one that nobody has.

    Args:
        ca: the user CA.
        public_key: one line as in authorized_keys.
        identity: what it shall prove; `principals` are its logins.
        now: UTC.
        forward_agent: add permit-agent-forwarding.
        port_forwarding: add permit-port-forwarding.
        x11_forwarding: add permit-X11-forwarding.

    Raises:
        CertificateError: if CA, key, identity and validity do not fit.
    """
    _check_kinds(ca, CaKind.USER, identity, Kind.USER)
    builder = _ssh(ca, public_key, identity, now).type(SSHCertificateType.USER)
    builder = builder.valid_principals([login.encode() for login in identity.principals or (NO_LOGIN,)])
    builder = builder.add_extension(b"permit-pty", b"")
    if forward_agent:
        builder = builder.add_extension(b"permit-agent-forwarding", b"")
    if port_forwarding:
        builder = builder.add_extension(b"permit-port-forwarding", b"")
    if x11_forwarding:
        builder = builder.add_extension(b"permit-X11-forwarding", b"")
    return _sign_ssh(ca, builder)


def issue_host_ssh(ca: Authority, public_key: str | bytes, identity: Identity, now: datetime) -> str:
    """Return a host's OpenSSH certificate, one line.

    Args:
        ca: the host CA.
        public_key: one line as in authorized_keys.
        identity: what it shall prove; `principals` are its names, such as host id, nodename, nodename.cluster.
        now: UTC.

    Raises:
        CertificateError: if CA, key, identity and validity do not fit.
    """
    _check_kinds(ca, CaKind.HOST, identity, Kind.HOST)
    _check_reserved(ca, identity, identity.principals)
    if not identity.principals:
        raise CertificateError("a host certificate needs a name: OpenSSH takes an empty list as any")
    builder = _ssh(ca, public_key, identity, now).type(SSHCertificateType.HOST)
    return _sign_ssh(ca, builder.valid_principals([name.encode() for name in identity.principals]))


_CLIENT: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_SERVER: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_BOTH: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
_PROXIES: Final = frozenset({"proxy", "auth"})


def _check_ca(ca: Authority, kind: CaKind) -> None:
    if ca.kind is not kind:
        raise CertificateError(f"the {ca.kind} CA does not sign what the {kind} CA signs")


def _check_kinds(ca: Authority, ca_kind: CaKind, identity: Identity, kind: Kind) -> None:
    _check_ca(ca, ca_kind)
    if identity.kind is not kind or identity.cluster != ca.cluster:
        raise CertificateError(f"the {ca.kind} CA of {ca.cluster} cannot vouch for {identity.kind} {identity}")


def _check_reserved(ca: Authority, identity: Identity, names: Iterable[str]) -> None:
    """Keep the names that mean the proxy or the auth service out of other hosts' certificates."""
    if _PROXIES.isdisjoint(identity.roles):
        for name in names:
            canonical = name.lower().rstrip(".")
            if canonical in (RESERVED, ca.cluster.lower()) or canonical.endswith("." + RESERVED):
                raise CertificateError(f"{name} is a name of the proxy, not of a host with roles {identity.roles}")


def _subject(common_name: str, cluster: str, unit: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster)]
    if unit:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    if 0 < len(common_name) <= COMMON_NAME:  # longer ones are in the identity or among the alternative names
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(attributes)


def _leaf(
    ca: Authority, key: PublicKey, subject: x509.Name, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    _check_validity(ca, now, expires)
    ca_ski = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=isinstance(key, rsa.RSAPublicKey),  # only RSA key exchange of TLS 1.2 needs it
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_ski), critical=False)
    )


def _check_validity(ca: Authority, now: datetime, expires: datetime) -> None:
    if expires <= now:
        raise CertificateError("the certificate would have expired already")
    if expires > ca.certificate.not_valid_after_utc:
        raise CertificateError(f"the certificate would outlive the {ca.kind} CA")


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    if not 0 < len(names) <= MAX_NAMES:
        raise CertificateError(f"a certificate has between 1 and {MAX_NAMES} names, not {len(names)}")
    return x509.SubjectAlternativeName(dict.fromkeys(_alternative_name(name) for name in names))


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    canonical = name.lower().removesuffix(".")
    labels = canonical.removeprefix("*.").split(".")
    if len(canonical) > 253 or not all(_is_label(label) for label in labels):
        raise CertificateError(f"not a DNS name or IP address: {name!a}")
    return x509.DNSName(canonical)


def _is_label(label: str) -> bool:
    # underscores: host names that people gave their machines; everything else as RFC 1123 section 2.1
    plain = label.isascii() and label.replace("-", "").replace("_", "").isalnum()
    return plain and len(label) <= 63 and label[0] != "-" and label[-1] != "-"


def _sign(ca: Authority, builder: x509.CertificateBuilder) -> str:
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _ssh(ca: Authority, public_key: str | bytes, identity: Identity, now: datetime) -> SSHCertificateBuilder:
    _check_validity(ca, now, identity.expires)
    return (
        SSHCertificateBuilder()
        .public_key(load_ssh_key(public_key))
        .serial(secrets.randbits(64))
        .key_id(str(identity).encode())
        .valid_after(int((now - CLOCK_SKEW).timestamp()))
        .valid_before(int(identity.expires.timestamp()))
        # the builder wraps each value as an SSH string inside the option's own string, as PROTOCOL.certkeys has it
        .add_extension(SSH_EXTENSION.encode(), encode(identity))
    )


def _sign_ssh(ca: Authority, builder: SSHCertificateBuilder) -> str:
    return builder.sign(ca.ssh_signer).public_bytes().decode()
