"""One context per trust domain, certificate and protocol, chosen before the handshake."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key

from monoport.net.memory import pair
from monoport.net.tls import TlsStream, connect_tls, serve_tls
from monoport.proxy.contexts import ContextError, Contexts, KeyPair
from monoport.routing.outcome import Ask, Show, Tls, Trust

from ..net.pki import Leaf, cluster, public  # noqa: TID252  # tests are no package

WEB = Tls(Show.PUBLIC, Ask.NONE, Trust.NONE, "h2", tls12=True)
SSH = Tls(Show.CLUSTER, Ask.NONE, Trust.NONE, "teleport-proxy-ssh")
DATABASE = Tls(Show.CLUSTER, Ask.REQUIRED, Trust.USER, "postgresql", tls12=True)
TUNNEL = Tls(Show.CLUSTER, Ask.REQUIRED, Trust.HOST, None)


def keypair(leaf: Leaf) -> KeyPair:
    return KeyPair(leaf.certificate, leaf.key, "test.pem")


def contexts(*pairs: Leaf) -> Contexts:
    made = cluster()
    return Contexts(
        keypair(made.proxy),
        [keypair(leaf) for leaf in pairs],
        {Trust.USER: made.trusted.user, Trust.HOST: made.trusted.host},
    )


async def shown(context: ssl.SSLContext, version: ssl.TLSVersion | None = None) -> bytes:
    """The certificate that a client gets to see."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        client.maximum_version = version
    a, b = pair()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_tls(a, context))
        stream = group.create_task(connect_tls(b, client, server_hostname=None))
    result: TlsStream = stream.result()
    certificate = result._ssl.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def der(leaf: Leaf) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.certificate.decode())


def test_routes_of_one_kind_share_a_context_and_trust_domains_never_do() -> None:
    made = contexts()
    assert made.context(SSH) is made.context(Tls(Show.CLUSTER, Ask.NONE, Trust.NONE, "teleport-proxy-ssh"))
    found = {id(made.context(tls)) for tls in (WEB, SSH, DATABASE, TUNNEL)}
    assert len(found) == 4


def test_tickets_versions_and_verification_follow_the_route() -> None:
    made = contexts()
    assert made.context(WEB).num_tickets == 1
    for tls, mode in ((DATABASE, ssl.CERT_REQUIRED), (TUNNEL, ssl.CERT_REQUIRED)):
        context = made.context(tls)
        assert context.num_tickets == 0
        assert context.options & ssl.OP_NO_TICKET
        assert context.verify_mode == mode
    assert made.context(SSH).minimum_version == ssl.TLSVersion.TLSv1_3
    assert made.context(WEB).minimum_version == ssl.TLSVersion.TLSv1_2


async def test_old_tls_is_spoken_only_where_the_route_says_so() -> None:
    made = contexts()
    assert await shown(made.context(WEB), ssl.TLSVersion.TLSv1_2) == der(cluster().proxy)
    with pytest.raises(ExceptionGroup) as refused:
        await shown(made.context(SSH), ssl.TLSVersion.TLSv1_2)
    assert "unsupported protocol" in str(refused.value.exceptions)


async def test_among_several_public_certificates_the_name_decides() -> None:
    first, second, wild = public("one.example"), public("two.example"), public("*.apps.example")
    made = contexts(first, second, wild)
    for name, leaf in (
        ("one.example", first),
        ("two.example", second),
        ("grafana.apps.example", wild),
        ("a.b.apps.example", first),  # a wildcard is one label
        ("unknown.example", first),
        (None, first),
    ):
        assert await shown(made.context(WEB, name)) == der(leaf)
    assert await shown(made.context(SSH, "two.example")) == der(cluster().proxy)


async def test_new_certificates_are_shown_from_the_next_handshake_on() -> None:
    old, new = public("web.example"), public("web.example")
    made = contexts(old)
    assert await shown(made.context(WEB)) == der(old)
    made.update(keypair(cluster().proxy), [keypair(new)], {Trust.USER: cluster().trusted.user})
    assert await shown(made.context(WEB)) == der(new)


async def test_certificates_that_do_not_fit_change_nothing() -> None:
    good, other = public("web.example"), public("web.example")
    made = contexts(good)
    for wrong in (
        KeyPair(good.certificate, other.key, "mixed.pem"),
        KeyPair(b"no certificate", good.key, "empty.pem"),
    ):
        with pytest.raises(ContextError, match=wrong.origin):
            made.update(keypair(cluster().proxy), [wrong], {})
    with pytest.raises(ContextError, match="user CA"):
        made.update(keypair(cluster().proxy), [keypair(good)], {Trust.USER: ["no CA"]})
    assert await shown(made.context(WEB)) == der(good)
    assert made.context(DATABASE).verify_mode == ssl.CERT_REQUIRED


def test_an_encrypted_key_is_an_error_and_never_a_prompt() -> None:
    leaf = public("web.example")
    locked = load_key(leaf.key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    with pytest.raises(ContextError, match=r"locked\.pem"):
        Contexts(KeyPair(leaf.certificate, locked, "locked.pem"))


def test_asking_for_certificates_without_a_ca_is_refused() -> None:
    made = Contexts(keypair(cluster().proxy))
    with pytest.raises(ContextError, match="no user CA"):
        made.context(DATABASE)
