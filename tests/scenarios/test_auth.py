"""RFD 39, "Supporting direct Teleport Auth dial": `teleport-auth@cluster` leads to that cluster's auth service."""

import pytest

from monoport.net.stream import Stream
from monoport.net.tls import HandshakeError

from .cluster import CLUSTER, Cluster

PLAIN = f"teleport-auth@{CLUSTER}"
HEX = f"teleport-auth@{CLUSTER.encode().hex()}.teleport.cluster.local"


@pytest.mark.parametrize("alpn", [PLAIN, HEX], ids=["plain", "hex"])
async def test_auth_is_dialled_through_the_proxy_which_passes_bytes_on(cluster: Cluster, alpn: str) -> None:
    alice = await cluster.user("alice")

    stream = await cluster.tls(alpn, sni=CLUSTER, user=alice)
    await stream.write(b"GET /v1/status HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n\r\n")
    answer = await read_all(stream)

    # TLS ended at the auth service itself: it has seen the user's certificate, the proxy has not.
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"caller":"alice@example.com"' in answer
    (passed,) = [row for row in cluster.proxy.connections.rows() if row["kind"] == "auth"]
    assert (passed["alpn"], passed["server_name"], passed["user"]) == ([alpn], CLUSTER, None)
    assert passed["bytes_out"] > len(answer)


async def test_auth_asks_for_a_certificate_whoever_passes_the_bytes_on(cluster: Cluster) -> None:
    stream = await cluster.tls(PLAIN, sni=CLUSTER)
    with pytest.raises(ConnectionError, match="certificate required"):
        await stream.read()


async def test_auth_of_a_cluster_that_nobody_knows(cluster: Cluster) -> None:
    alice = await cluster.user("alice")
    with pytest.raises(HandshakeError, match="no application protocol"):
        await cluster.tls("teleport-auth@elsewhere.example", user=alice)
    assert cluster.refused() == "unknown_cluster"


async def read_all(stream: Stream) -> bytes:
    """Everything until the other side's clean end."""
    found = b""
    while data := await stream.read():
        found += data
    return found
