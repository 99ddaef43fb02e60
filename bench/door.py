"""monoport's data plane as the daemon runs it, with one handler that dials a TCP backend in place of a tunnel.

    door.py PKI_FOLDER BACKEND_PORT PORT

The SNI name says which backend: `echo`, `sink` or `source` under localhost, on BACKEND_PORT and the two above it.
Routing, limits, deadlines, contexts, identity, leases, the registry, its counters and one log line per connection
are all on. Over `teleport-reversetunnel` a session begins, as every real one does, with an audit event that is on disk
before it goes on. Belongs here: that handler. Does not belong here: anything that the daemon does otherwise.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from monoport.audit.log import SpoolLog
from monoport.audit.spool import Spool
from monoport.daemon import logs
from monoport.net import eventloop, heap
from monoport.net.arrival import Limits
from monoport.net.listener import Listener
from monoport.net.ports import bind
from monoport.net.relay import relay
from monoport.net.sockets import connect
from monoport.proxy.connection import Connection, FrontDoor, serve
from monoport.proxy.contexts import Contexts, KeyPair
from monoport.proxy.registry import Connections
from monoport.routing.outcome import Kind, Trust
from monoport.routing.rows import DatabaseRule
from monoport.routing.table import build
from pki import CLUSTER, Pki

POSTGRES = DatabaseRule("postgres", alpn=("teleport-postgres",), direct_alpn=("postgresql",))
OFFSETS = {"echo.localhost": 0, "sink.localhost": 1, "source.localhost": 2}


async def main(pki: Pki, backends: int, port: int, spool: Spool) -> None:
    """Serve until killed."""
    audit = SpoolLog(spool)
    trusted = pki.trusted()
    pair = KeyPair(pki.certificate.read_bytes(), pki.key.read_bytes())
    connections = Connections()

    async def dial(connection: Connection) -> None:
        route = connection.route
        if route is not None and route.kind is Kind.TUNNEL:  # the row that measures what a durable event adds
            await audit.emit(
                "session.start", connection=connection.id, user=str(connection.identity), source=connection.source[0]
            )
        offset = OFFSETS.get(route.server_name or "", 0) if route is not None else 0
        async with await connect("127.0.0.1", backends + offset) as backend:
            await relay(connection.stream, backend, idle=3600, meter=connection.meter)

    served = frozenset({Kind.SSH, Kind.TUNNEL, Kind.DATABASE, Kind.WEB, Kind.AUTH})
    front = FrontDoor(
        table=build([f"localhost:{port}"], CLUSTER, served, [POSTGRES]),
        contexts=Contexts(pair, (), {Trust.USER: trusted.user, Trust.HOST: trusted.host}),
        connections=connections,
        handlers=dict.fromkeys(served, dial),
        cas=lambda: trusted,
    )
    listener = Listener(
        bind("127.0.0.1", port),
        lambda arrival: serve(arrival, front),
        Limits(connections=9000),
        connections.turned_away,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(connections.watch(lambda: (), lambda: datetime.now(UTC)))
        group.create_task(listener.run())
        await asyncio.sleep(0)
        heap.settle()
        print("ready", flush=True)


async def start(pki: Pki, backends: int, port: int) -> None:
    """Open the audit spool, then serve."""
    with tempfile.TemporaryDirectory(prefix="spool-", dir=pki.folder) as folder:
        await main(pki, backends, port, await Spool.open(Path(folder)))


if __name__ == "__main__":
    logs.configure("info", "text")
    eventloop.run(start(Pki(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])))
