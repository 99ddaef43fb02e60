"""The numbers behind the metrics, read from those who count them anyway.

Belongs here: which attribute of which service is which metric. Does not belong here: the metrics' names and meanings,
their text (audit.metrics), HTTP (diagnostics). Labels are words of our own source, never a user's, host's or database's
name: whoever may scrape does not learn who is here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from monoport.agents.database.agent import Databases
from monoport.agents.node.agent import Node
from monoport.audit.metrics import OTHER, Histogram, Sample
from monoport.audit.recorder import Recordings
from monoport.auth.local import LocalAuth
from monoport.daemon.frontdoor import Proxy
from monoport.daemon.member import Member
from monoport.proxy.connection import Connection

ROLES = ("auth", "proxy", "node", "db", "app", "kube")  # of hosts
UNROUTED = "unrouted"  # connections whose first bytes have not decided yet
NO_PROTOCOL = "none"  # of connections whose route names no database protocol
INTERVAL = 0.5  # seconds between looks at the event loop


async def watch_lag(lag: Histogram, interval: float = INTERVAL) -> None:
    """Note, until cancelled, how late the event loop comes to a timer."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval
        await asyncio.sleep(interval)
        lag.observe(max(0.0, loop.time() - due))


def of_auth(auth: LocalAuth) -> Iterator[Sample]:
    """The auth service of this process."""
    for result, count in auth.logins.items():
        yield Sample("logins", count, (result,))
    yield Sample("certificate_expiry_timestamp_seconds", auth.expires.timestamp(), ("auth",))
    yield Sample("audit_events_lost", auth.outage.lost, ("auth",))
    yield Sample("audit_failing", bool(auth.outage.problem), ("auth",))


def of_member(member: Member) -> Iterator[Sample]:
    """One role of this host in its cluster."""
    role, audit = member.role, member.audit
    yield Sample("auth_connected", member.cache.connected, (role,))
    yield Sample("certificate_expiry_timestamp_seconds", member.host.expires.timestamp(), (role,))
    for type_, count in audit.kept.items():
        yield Sample("audit_events", count, (role, type_))
    yield Sample("audit_events_failed", audit.failed, (role,))
    yield Sample("audit_events_lost", audit.outage.lost, (role,))
    yield Sample("audit_failing", bool(audit.outage.problem), (role,))
    events, size = audit.waiting
    yield Sample("audit_waiting_events", events, (role,))
    yield Sample("audit_waiting_bytes", size, (role,))


def of_proxy(proxy: Proxy) -> Iterator[Sample]:
    """The front door and the tunnels that end there."""
    connections = proxy.connections
    live = list(connections)
    for labels, count in Counter(map(_kind, live)).items():
        yield Sample("connections_open", count, labels)
    routed = Counter(one.route.kind for one in live if one.route is not None)
    for kind, closed in connections.closed_by_kind.items():
        yield Sample("connections_routed", closed + routed[kind], (kind.value,))
    for code, count in connections.refused_by_code.items():
        yield Sample("connections_refused", count, (code,))
    yield Sample("relayed_bytes", connections.bytes_in + sum(one.meter.bytes_in for one in live), ("in",))
    yield Sample("relayed_bytes", connections.bytes_out + sum(one.meter.bytes_out for one in live), ("out",))
    yield Sample("connection_slots_used", proxy.slots_used)
    yield Sample("connection_slots", proxy.slots)
    for row in proxy.tunnels.agents():
        role = next((role for role in ROLES if role in row.roles), OTHER)
        yield Sample("tunnels_open", 1, (role,))
        yield Sample("tunnel_streams_open", row.channels, (role,))


def of_node(node: Node, recordings: Recordings) -> Iterator[Sample]:
    """The SSH node."""
    for state, count in zip(("waiting", "refused"), recordings.counts, strict=True):
        yield Sample("recordings", count, (state,))
    yield Sample("ssh_connections_open", node.connections)
    yield Sample("ssh_sessions_open", node.sessions)
    yield Sample("ssh_logins", node.logins)


def of_databases(databases: Databases) -> Iterator[Sample]:
    """The database agent."""
    for protocol in sorted({one.spec.protocol for one in databases.resources}):
        yield Sample("database_sessions_open", databases.open[protocol], (protocol,))
        yield Sample("database_sessions", databases.begun[protocol], (protocol,))
        yield Sample("database_statements", databases.statements[protocol], (protocol,))
    down = sum(1 for problem in databases.health.values() if problem)
    yield Sample("databases", len(databases.resources) - down, ("up",))
    yield Sample("databases", down, ("down",))


def _kind(connection: Connection) -> tuple[str, str]:
    route = connection.route
    return (UNROUTED, NO_PROTOCOL) if route is None else (route.kind.value, route.protocol or NO_PROTOCOL)
