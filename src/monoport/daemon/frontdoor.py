"""The proxy of this daemon: the table, the contexts and the handlers of its one port, bound together.

Belongs here: which handler serves which kind of route, and new certificates while it runs. Does not belong here: what
a handler does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import structlog

from monoport.auth.authorities import pin
from monoport.auth.client import Change, Put, Removed
from monoport.config import Config
from monoport.config.model import KeyPair as KeyPairFiles
from monoport.daemon.member import Member
from monoport.errors import Failure
from monoport.net.arrival import Limits
from monoport.net.balancers import Balancers
from monoport.net.listener import Listener
from monoport.net.sockets import SocketStream
from monoport.proxy.auth import AuthService
from monoport.proxy.connection import FrontDoor, Handler, serve
from monoport.proxy.contexts import Contexts, KeyPair
from monoport.proxy.database import Databases
from monoport.proxy.plainssh import PlainSsh
from monoport.proxy.registry import Connections
from monoport.proxy.ssh import SshProxy
from monoport.proxy.tunnel import DialBacks, ReverseTunnels
from monoport.proxy.web.app import Web
from monoport.proxy.web.site import site
from monoport.routing import table as routing
from monoport.routing.outcome import Kind, Trust
from monoport.tunnel.proxy import Tunnels

FILES_SECONDS = 5.0  # between looks at https_keypairs: a renewed certificate is shown within this
GRACE_SECONDS = 5.0  # that running connections have when the daemon is told to stop

_log = structlog.get_logger()


class Proxy:
    """One proxy service: made when the cluster's state is known, then run on bound sockets.

    Args:
        config: with proxy_service enabled.
        member: its certificates, the auth service, what is known of the cluster, and where to record.
    """

    def __init__(self, config: Config, member: Member) -> None:
        host, cache, audit = member.host, member.cache, member.audit
        self._config, self._host, self._cache = config, host, cache
        cluster = cache.cas.cluster
        self.connections = Connections()
        self._listener: Listener | None = None
        self._over = asyncio.Event()
        self._own: dict[str, str] = {}  # by port: protocols that begin with TLS and have it for themselves
        self._tunnel_ports: frozenset[str] = frozenset()
        self._stamps: tuple[tuple[int, int], ...] = ()
        self._public = self._fresh_keypairs() or ()
        self.contexts = Contexts(self._shown(), self._public, self._trusted())
        tunnels = Tunnels(lambda: host.key, cache)
        self.tunnels = tunnels
        web = Web(
            site(config, cluster, lambda: tuple(pin(pem) for pem in cache.cas.host)), member.client, lambda: cache.cas
        )
        users = SshProxy(lambda: host.key, tunnels, cache, audit)
        handlers: dict[Kind, Handler] = {
            Kind.SSH: PlainSsh(users, tunnels).serve,
            Kind.TUNNEL: ReverseTunnels(tunnels).serve,
            Kind.DIALBACK: DialBacks(tunnels).serve,
            Kind.DATABASE: Databases(self.contexts, tunnels, cache, audit, table=config.protocols).serve,
            Kind.WEB: web.serve,
            Kind.BOOTSTRAP: web.serve,
            Kind.AUTH: AuthService(member.dial_auth).serve,
        }
        rules = [description.routing for description in config.protocols.values()]
        public = [str(address) for address in config.public_addrs]
        self._greets = _greets(config)
        served, greeting = frozenset(handlers), bool(self._greets)
        table = routing.build(public, cluster, served, rules, greeting=greeting)
        self.front = FrontDoor(table, self.contexts, self.connections, handlers, lambda: cache.cas)
        agents = routing.build(public, cluster, served, rules, greeting=greeting, agents=True)
        self._agents = replace(self.front, table=agents)  # tunnel_listen_addr
        cache.subscribe(self._changed)

    async def run(self, bound: Mapping[str, Sequence[socket.socket]]) -> None:
        """Serve until `drain` has ended, or until cancelled.

        bound: sockets by what their address is for: "web", "ssh", "tunnel" or a protocol's name.
        """
        service = self._config.proxy_service
        limits = Limits(service.limits.connections, service.limits.per_source)
        networks = service.proxy_protocol.networks
        balancers = Balancers(networks) if networks else None
        sockets = [one for found in bound.values() for one in found]
        by_name = (one.name for one in self._config.protocols.values() if one.routing.by_name)
        self._own = {str(sock.getsockname()[1]): name for name in by_name for sock in bound.get(name, ())}
        self._tunnel_ports = frozenset(str(sock.getsockname()[1]) for sock in bound.get("tunnel", ()))
        greets = {one: seconds for name, seconds in self._greets.items() for one in bound.get(name, ())}
        self._listener = Listener(sockets, self._serve, limits, self.connections.turned_away, balancers, greets=greets)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_files())
            await self._listener.run()
            watching.cancel()
        self._over.set()

    @property
    def serving(self) -> bool:
        """Whether it takes new connections."""
        return self._listener is not None and self._listener.listening

    @property
    def slots(self) -> int:
        """How many connections there may be at once."""
        return self._config.proxy_service.limits.connections

    @property
    def slots_used(self) -> int:
        """How many there are, those included that have not spoken yet."""
        return self._listener.taken if self._listener is not None else 0

    async def drain(self) -> None:
        """Accept no more; give running sessions their grace, and end what is left: agents come back by themselves."""
        if self._listener is not None:
            self._listener.drain(GRACE_SECONDS if self._sessions() else 0.0)
            await self._over.wait()

    def _sessions(self) -> bool:
        """Whether anybody's session runs, rather than tunnels and watches alone."""
        routes = (connection.route for connection in self.connections)
        return any(route is not None and route.kind in (Kind.SSH, Kind.DATABASE) for route in routes)

    def sweep(self, now: datetime) -> None:
        """End what has expired or is locked."""
        self.connections.sweep(now, self._cache.locks)

    def renewed(self) -> None:
        """Show this proxy's new certificate, and believe the CAs that are known now, from the next handshake on."""
        self.contexts.update(self._shown(), self._public, self._trusted())

    async def _serve(self, arrival: object) -> None:
        stream = arrival.stream  # type: ignore[attr-defined]
        more = self._own or self._tunnel_ports
        port = stream.local.rpartition(":")[2] if more and isinstance(stream, SocketStream) else ""
        front = self._agents if port in self._tunnel_ports else self.front
        await serve(arrival, front, self._own.get(port, ""))  # type: ignore[arg-type]

    def _changed(self, change: Change) -> None:
        if not isinstance(change, Put | Removed):
            self._host.trust(self._cache.cas)
            self.renewed()

    def _shown(self) -> KeyPair:
        credentials = self._host.credentials
        return KeyPair(credentials.certificate.encode(), credentials.key.encode(), "this proxy's certificate")

    def _trusted(self) -> dict[Trust, tuple[str, ...]]:
        return {Trust.USER: self._cache.cas.user, Trust.HOST: self._cache.cas.host}

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(FILES_SECONDS)
            self.look()

    def look(self) -> None:
        """Show https_keypairs whose files have changed from the next handshake on; what cannot be used is logged."""
        try:
            fresh = self._fresh_keypairs()
            if fresh is not None:
                self.contexts.update(self._shown(), fresh, self._trusted())  # raises where they do not fit
                self._public = fresh
                _log.info("https_keypairs read again", pairs=len(fresh))
        except (Failure, OSError) as error:
            _log.error("https_keypairs cannot be read, the old ones stay", error=str(error))

    def _fresh_keypairs(self) -> tuple[KeyPair, ...] | None:
        """The files' contents where one of them has changed since the last look, else None."""
        files = self._config.proxy_service.https_keypairs
        stamps = tuple(_stamp(file) for pair in files for file in (pair.cert_file, pair.key_file))
        if stamps == self._stamps:
            return None
        self._stamps = stamps  # also where what they hold cannot be used: it is tried again when a file changes again
        return tuple(_read(pair) for pair in files)


def _greets(config: Config) -> dict[str, float]:
    """Whose silent clients are spoken to, by what their port is for, and after how many seconds."""
    service = config.proxy_service
    own = (one for one in config.protocols.values() if one.routing.greets and one.listen_key)
    greets = {one.name: 0.0 for one in own if getattr(service, one.listen_key) is not None}
    for seconds in service.on_silence().values():  # of one protocol at most
        greets["web"] = seconds
    return greets


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_ino


def _read(pair: KeyPairFiles) -> KeyPair:
    return KeyPair(pair.cert_file.read_bytes(), pair.key_file.read_bytes(), str(pair.cert_file))
