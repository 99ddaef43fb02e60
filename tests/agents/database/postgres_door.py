"""A whole proxy on a port of loopback with an agent beside a real PostgreSQL; only the tunnel is missing.

Belongs here: what the tests of real clients of PostgreSQL set up alike.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from monoport import protocols
from monoport.net.arrival import Limits
from monoport.net.listener import Listener
from monoport.proxy import connection
from monoport.proxy.registry import Connections
from monoport.routing.outcome import Kind
from monoport.routing.table import build

from ...real.postgres import PostgresServer  # noqa: TID252 # tests are no package
from .world import PUBLIC, Cluster, User, World, configured, world


@dataclass
class Door:
    """A whole proxy on one port of loopback, with an agent behind it."""

    port: int
    world: World
    connections: Connections
    folder: Path
    server: PostgresServer

    def dsn(self, user: User, *, host: str = f"orders.db.{PUBLIC}", more: str = "", name: str = "app") -> str:
        """libpq's words for plain SSLRequest straight to the port."""
        certificate, key = user.files(self.folder)
        root = self.folder / "cas.pem"
        root.write_text("".join(self.world.cluster.trusted.host))
        return (
            f"host={host} hostaddr=127.0.0.1 port={self.port} user=alice dbname={name} sslmode=verify-full "
            f"sslrootcert={root} sslcert={certificate} sslkey={key} connect_timeout=15 {more}"
        )

    def context(self, user: User) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata="".join(self.world.cluster.trusted.host))
        context.load_cert_chain(*user.files(self.folder))
        return context


@asynccontextmanager
async def opened(
    cluster: Cluster, server: PostgresServer, folder: Path, port: int = 0, **more: Any
) -> AsyncIterator[Door]:
    """The door to a server, or to what stands before it on `port`, with that in the agent's configuration."""
    orders = configured(port=port or server.port).model_copy(update=more)
    async with world(cluster, orders) as made, asyncio.TaskGroup() as group:
        connections = Connections()
        table = build(
            [PUBLIC], "example.com", frozenset({Kind.DATABASE}), [one.routing for one in protocols.TABLE.values()]
        )
        front = connection.FrontDoor(
            table, made.contexts, connections, {Kind.DATABASE: made.proxy.serve}, lambda: cluster.trusted
        )
        listening = socket.create_server(("127.0.0.1", 0))
        listener = Listener([listening], lambda arrival: connection.serve(arrival, front), Limits())
        running = group.create_task(listener.run())
        yield Door(listening.getsockname()[1], made, connections, folder, server)
        running.cancel()


async def psql(door: Door, dsn: str, *words: str, stdin: str = "") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        "psql", "-XAtq", dsn, *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def cancelled(door: Door, client: psycopg.AsyncConnection[Any]) -> None:
    """Cancel as soon as the real server sleeps."""
    await until_sleeping(door)
    await client.cancel_safe(timeout=10)


async def until_sleeping(door: Door) -> None:
    """Wait until the real server runs a pg_sleep."""
    query = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(door.server.sql, query)).strip() == "0":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
