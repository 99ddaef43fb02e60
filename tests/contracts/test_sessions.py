"""What every registered protocol must hold on a connection: nothing before the permit, nothing after the lease."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monoport.access.claims import Destination
from monoport.config.model import Database
from monoport.net.memory import pair
from monoport.net.stream import Stream
from monoport.protocols.description import Description
from monoport.tunnel import dial
from monoport.tunnel.preface import Kind, Preface

from ..agents.database import world as agents  # noqa: TID252 # tests are no package
from ..scenarios.cluster import PATIENCE, Cluster  # noqa: TID252


async def read_all(stream: Stream) -> bytes:
    """Everything until the stream ends, however it does."""
    found = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while data := await stream.read():
                found += data
    except ConnectionError:
        pass
    return found


async def test_the_proxy_dials_nobody_without_a_permit(cluster: Cluster, protocol: Description, peer: Any) -> None:
    async with peer.Server.running(cluster) as server:
        await cluster.database("orders", server.port, protocol.name)
        mallory = await cluster.user("mallory", roles=("auditor",))

        async with await cluster.tls(protocol.alpn[0], sni=f"orders.db.{agents.PUBLIC}", user=mallory) as client:
            await client.write(peer.opening("alice", "app"))
            said = await read_all(client)

        assert b'access to "orders" denied' in said
        assert server.users == []
    assert cluster.events("db.session.start") == []
    assert {event["user"] for event in cluster.events("db.session.deny")} == {"mallory@example.com"}


@pytest.mark.parametrize(("user", "arrives"), [("alice", True), ("postgres", False)], ids=["with", "without"])
async def test_no_byte_reaches_the_server_before_the_agent_has_authorised(
    protocol: Description, peer: Any, user: str, arrives: bool
) -> None:
    """A proxy that lets everyone through changes nothing: the agent decides again, before it even connects."""
    cas = agents.Cluster()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        uri = f"127.0.0.1:{listening.getsockname()[1]}"
        orders = Database.model_validate({"name": "orders", "protocol": protocol.name, "uri": uri})
        async with agents.world(cas, orders) as made, asyncio.TaskGroup() as group:
            near, far = pair()
            preface = Preface(
                "c-1", Kind.DATABASE, "orders", cas.user().certificate, "192.0.2.1:1", user=user, database="app"
            )
            serving = group.create_task(refused(made.agent, preface, far))
            await near.write(peer.opening(user, "app"))
            if arrives:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
                accepted.close()
                near.abort()
            else:
                assert await serving == f'access to "orders" as database user "{user}" denied'
                with pytest.raises(BlockingIOError):
                    listening.accept()


async def refused(agent: Any, preface: Preface, stream: Stream) -> str:
    """Why the agent refused what was dialled; "" if it served it."""
    try:
        await agent.serve(preface, stream)
    except dial.DialRefused as error:
        return str(error)
    except ConnectionError:
        stream.abort()
    return ""


@pytest.mark.parametrize("why", ["certificate expired", "locked: user alice"])
async def test_a_session_ends_when_its_lease_does(cluster: Cluster, protocol: Description, peer: Any, why: str) -> None:
    async with peer.Server.running(cluster) as server:
        await cluster.database("orders", server.port, protocol.name)
        alice = await cluster.user("alice", db=Destination("db", "orders", protocol.name, "alice", "app"))
        client = await cluster.tls(protocol.alpn[0], user=alice)
        await client.write(peer.opening("alice", "app"))
        await peer.let_in(client) if hasattr(peer, "let_in") else await client.read()  # the server's own welcome

        now = datetime.now(UTC)
        if why.startswith("locked"):
            await cluster.admin.create(
                {"kind": "lock", "metadata": {"name": "l"}, "spec": {"target": {"user": "alice"}}}
            )
            await cluster.until(lambda: cluster.known.locks)
        else:
            now += timedelta(days=1)
        cluster.sweep(now)

        said = await read_all(client)
        client.abort()
        assert b"session ended" in said

    await cluster.until(lambda: cluster.events("db.session.end"))
    (end,) = cluster.events("db.session.end")
    assert end["reason"] == why
