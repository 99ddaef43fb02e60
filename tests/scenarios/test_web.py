"""RFD 39, "TLS SNI routing": the web by default, Kubernetes and reserved names by theirs, who is turned away."""

import ssl

import pytest

from monoport.client.front import blind_context
from monoport.client.webapi import WebApi
from monoport.net.tls import HandshakeError, connect_tls

from .cluster import CLUSTER, PUBLIC, Cluster


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2", "http/1.1")], ids=["none", "http/1.1", "a browser's"])
async def test_the_web_is_what_the_public_name_leads_to(cluster: Cluster, alpn: tuple[str, ...]) -> None:
    """What tsh asks first: does this proxy route by ALPN?"""
    found = await WebApi(await cluster.tls(*alpn), PUBLIC).get("/webapi/ping")
    assert found["cluster_name"] == CLUSTER
    assert found["proxy"]["tls_routing_enabled"] is True


async def test_the_web_by_any_other_name_that_nobody_has(cluster: Cluster) -> None:
    """A load balancer's health check knows the address alone; no client that verifies would go on."""
    probe = await connect_tls(cluster.connect(), blind_context(), server_hostname="192.0.2.1")
    (row,) = cluster.proxy.connections.rows()
    assert (row["kind"], row["server_name"], probe.selected_alpn) == ("web", None, "http/1.1")


@pytest.mark.parametrize(
    "alpn", [(), ("http/1.1", "h2"), ("teleport-proxy-ssh",)], ids=["none", "kubectl's", "another"]
)
async def test_kubernetes_has_its_own_name_and_is_refused_where_it_is_not_enabled(
    cluster: Cluster, alpn: tuple[str, ...]
) -> None:
    with pytest.raises(HandshakeError, match="no application protocol"):
        await cluster.tls(*alpn, sni=f"kube.{PUBLIC}")
    assert cluster.refused() == "not_enabled"


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)], ids=["none", "http/1.1"])
@pytest.mark.parametrize("sni", [f"db.{PUBLIC}", "anything.teleport.cluster.local"])
async def test_reserved_names_never_lead_to_the_web(cluster: Cluster, sni: str, alpn: tuple[str, ...]) -> None:
    with pytest.raises(HandshakeError, match="no application protocol"):
        await cluster.tls(*alpn, sni=sni)
    assert cluster.refused() == "not_enabled"


@pytest.mark.parametrize("alpn", ["teleport-desktop", "teleport-anything"])
async def test_reserved_protocols_that_are_not_enabled(cluster: Cluster, alpn: str) -> None:
    with pytest.raises(HandshakeError, match="no application protocol"):
        await cluster.tls(alpn, "http/1.1")
    assert cluster.refused() == "not_enabled"


async def test_an_unknown_protocol_gets_alert_120_before_any_tls_library(cluster: Cluster) -> None:
    irc = cluster.connect()
    await irc.write(client_hello("irc", PUBLIC))
    assert await irc.read() == bytes.fromhex("15 0303 0002 02 78")  # an alert, two octets: fatal, 120
    assert await irc.read() == b""
    assert cluster.refused() == "unknown_alpn"


async def test_plain_http_is_sent_to_https(cluster: Cluster) -> None:
    browser = cluster.connect()
    await browser.write(f"GET /web?q=1 HTTP/1.1\r\nHost: {PUBLIC}\r\n\r\n".encode())
    answer = await browser.read()
    assert answer.startswith(b"HTTP/1.1 308 ")
    assert f"\r\nLocation: https://{PUBLIC}/web?q=1\r\n".encode() in answer
    assert await browser.read() == b""
    assert cluster.refused() == "plaintext_http"


async def test_what_is_no_protocol_is_closed_and_the_log_says_why(cluster: Cluster) -> None:
    stranger = cluster.connect()
    await stranger.write(b"\x00\x01\x02 hello?")
    assert await stranger.read() == b""
    assert cluster.refused() == "unknown_protocol"


def client_hello(alpn: str, sni: str) -> bytes:
    """As OpenSSL writes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([alpn])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=sni).do_handshake()
    return outgoing.read()
