"""The agents of this daemon: a resource's service, its tunnel to the proxy, its heartbeats, bound together.

Belongs here: which service hangs on which tunnel. Does not belong here: what a service does (agents), the tunnel's life
(tunnel.agent).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog

from monoport.access.lease import Leases
from monoport.access.resources import Metadata, Node, NodeSpec
from monoport.agents.database.agent import Databases
from monoport.agents.node.agent import Node as NodeService
from monoport.agents.node.openssh import OpensshNode
from monoport.agents.node.upload import upload
from monoport.agents.sealed import Sealer
from monoport.audit.metrics import Sample
from monoport.audit.recorder import Recordings
from monoport.auth.client import AuthError
from monoport.config import Config
from monoport.daemon import measure
from monoport.daemon.datadir import DataDirectory
from monoport.daemon.member import Member
from monoport.daemon.sshd import Sshd
from monoport.errors import Failure
from monoport.net.stream import Stream
from monoport.net.unix import serve_unix
from monoport.tunnel.agent import Agent, Handler
from monoport.tunnel.reach import Proxy, back

HEARTBEAT = 15.0  # seconds, up to a fifth less: the inventory forgets a node after 60
ANY = {"0.0.0.0", "::"}  # noqa: S104 # where a proxy listens on every address, its agent beside it takes loopback

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """One agent, as the daemon runs it."""

    agent: Agent
    beat: Callable[[], Awaitable[Any]]
    leases: Leases
    member: Member
    samples: Callable[[], Iterable[Sample]] = tuple  # its metrics, as they are now

    async def run(self) -> None:
        """Serve, and tell the cluster what is here, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.agent.run())
            group.create_task(self.beat())  # type: ignore[arg-type]

    def sweep(self, now: datetime) -> None:
        """End what has expired or is locked."""
        self.leases.sweep(now, self.member.cache.locks)


def roles(config: Config) -> list[str]:
    """The agents that a configuration enables."""
    return [role for role, on in (("node", config.ssh_service.enabled), ("db", config.db_service.enabled)) if on]


Connect = Callable[[], Awaitable[Stream]]


def make(config: Config, member: Member, data: DataDirectory, connect: Connect | None = None) -> Service:
    """The agent of a member's role; raises Failure.

    data: where a node keeps its recordings.
    connect: opens the transport of its tunnel; TLS to the proxy's port by default.
    """
    match member.role:
        case "node":
            return _node(config, member, data, connect)
        case "db":
            return _databases(config, member, connect)
        case other:
            raise Failure(f"there is no agent for the role {other}")


def _node(config: Config, member: Member, data: DataDirectory, connect: Connect | None) -> Service:
    host_id, own = member.host.host_id, config.ssh_service.openssh
    node = Node(
        metadata=Metadata(name=host_id, labels=dict(config.ssh_service.labels)),
        spec=NodeSpec(hostname=config.teleport.nodename, host_id=host_id, openssh=own.enabled),
    )
    leases = Leases()
    recordings = Recordings(data.recordings)  # an agent beside a host's own sshd sends on what it recorded before
    parts = [partial(_beat, member, node), partial(upload, recordings, member.client, member.audit)]
    service = NodeService(lambda: node, lambda: member.host.key, member.cache, member.audit, recordings=recordings)
    if own.enabled:
        address = (own.sshd_addr.host, own.sshd_addr.port)
        service = relaying = OpensshNode(
            lambda: node, lambda: member.host.key, member.cache, member.audit, sshd=address, leases=leases
        )
        parts.append(partial(_beside_sshd, Sshd(config.teleport.data_dir, own.host_key, member), relaying))

    async def beat() -> None:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part())

    samples = partial(measure.of_node, service, recordings)
    return Service(_agent(config, member, service.serve, connect), beat, leases, member, samples)


async def _beat(member: Member, node: Node) -> None:
    """Tell the cluster that the node is here, until cancelled."""
    while True:
        try:
            await member.client.heartbeat(node)
        except AuthError as error:
            _log.warning("heartbeat failed", node=node.spec.hostname, reason=str(error))
        await asyncio.sleep(HEARTBEAT * (1 - random.random() / 5))  # noqa: S311 # jitter, not a secret


async def _beside_sshd(sshd: Sshd, node: OpensshNode) -> None:
    """Keep sshd's files current and answer its questions, until cancelled."""
    await sshd.prepare()
    async with asyncio.TaskGroup() as group:
        group.create_task(sshd.run())
        group.create_task(serve_unix(sshd.socket, node.answer))


def _databases(config: Config, member: Member, connect: Connect | None) -> Service:
    leases = Leases()
    databases = config.db_service.databases
    found = (member.host.host_id, databases, member.cache, member.client, member.audit)
    sealer = Sealer(lambda: member.host.credentials, lambda: member.cache.cas)
    service = Databases(*found, leases=leases, sealer=sealer, table=config.protocols)
    agent = _agent(config, member, service.serve, connect)
    return Service(agent, service.run, leases, member, samples=partial(measure.of_databases, service))


def _agent(config: Config, member: Member, handler: Handler, connect: Connect | None) -> Agent:
    address = config.teleport.proxy_server
    if address is not None:
        proxy = Proxy(address.host, address.port)
    else:
        own = config.proxy_service.web_listen_addr
        proxy = Proxy("127.0.0.1" if own.host in ANY else own.host, own.port)
    host = member.host
    return Agent(
        proxy,
        host.host_id,
        lambda: host.key,
        lambda: member.cache.cas,
        handler,
        connect=connect,
        dial_back=back(proxy, lambda: host.credentials) if connect is None and config.teleport.dial_back else None,
    )
