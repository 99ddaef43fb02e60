"""RFD 39, "tsh ssh node", "OpenSSH ProxyCommand" and "Reverse tunnel": SSH inside TLS, told apart by ALPN."""

import asyncssh
import pytest

from monoport.net.tls import HandshakeError

from .cluster import CLUSTER, LOGIN, Cluster
from .ssh import channel, signed_in


@pytest.mark.parametrize("alpn", ["teleport-proxy-ssh", "teleport-ssh-proxy"])
async def test_ssh_to_a_node_through_the_one_port(cluster: Cluster, alpn: str) -> None:
    """`ssh -o "ProxyCommand tsh proxy ssh …" alice@web.example.com`; RFD 39 spells the protocol in two ways."""
    web = await cluster.node("web")
    alice = await cluster.user("alice")

    wrapped = await cluster.tls(alpn)  # no certificate: SSH authenticates
    async with signed_in(wrapped, alice) as proxy:
        node = await channel(proxy, f"web.{CLUSTER}")
        async with signed_in(node, alice, login=LOGIN, host=f"web.{CLUSTER}") as shell:
            said = await shell.run("echo hello from $USER")

    assert wrapped.selected_alpn == alpn
    assert said.stdout == f"hello from {LOGIN}\n"
    (start,) = cluster.events("session.start")
    assert (start["user"], start["login"], start["node"]) == ("alice@example.com", LOGIN, web.host.host_id)


@pytest.mark.parametrize("alpn", ["teleport-reversetunnel", "teleport-reverse-tunnel"])
async def test_an_agent_dials_out_and_is_reached_through_its_tunnel(cluster: Cluster, alpn: str) -> None:
    """An agent behind a firewall opens one connection to the one port; the user's comes back through it."""
    await cluster.node("web", alpn=alpn)
    alice = await cluster.user("alice")

    async with signed_in(await cluster.tls("teleport-proxy-ssh"), alice) as proxy:
        node = await channel(proxy, "web")
        assert (await node.read()).startswith(b"SSH-2.0-")
        node.abort()

    tunnels = [row for row in cluster.proxy.connections.rows() if row["kind"] == "tunnel"]
    assert [row["alpn"] for row in tunnels] == [[alpn]]


async def test_ssh_is_refused_to_whom_no_role_lets_in(cluster: Cluster) -> None:
    """The client learns what was refused, the audit log which rule decided."""
    await cluster.node("web")
    mallory = await cluster.user("mallory", roles=("auditor",))

    async with signed_in(await cluster.tls("teleport-proxy-ssh"), mallory) as proxy:
        with pytest.raises(
            asyncssh.ChannelOpenError, match=r'^access to node "web" denied \[connection \w+\]$'
        ) as told:
            await channel(proxy, "web")

    (denied,) = cluster.events("session.deny")
    assert told.value.reason.endswith(f"[connection {denied['connection']}]")
    assert denied["user"] == "mallory@example.com"
    assert denied["rule"]


async def test_an_agent_shows_the_proxy_whose_certificate_it_verifies(cluster: Cluster) -> None:
    """A tunnel under a name that the proxy has no certificate for does not come about."""
    with pytest.raises(HandshakeError, match="Hostname mismatch"):
        await cluster.tls("teleport-reversetunnel", sni="proxy.example.net")
