"""`monoport start`: the services of one configuration, from the first file to the last connection.

Belongs here: the order in which services start and stop, signals, and the ticker that ends sessions in time. Does not
belong here: what each service is made of (frontdoor, agents, member).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from monoport import __version__
from monoport.audit.metrics import Histogram, Metrics, Sample
from monoport.audit.outage import OnFailure, Outage
from monoport.auth.local import LocalAuth
from monoport.config import Address, Config
from monoport.daemon import admin, agents, diagnostics, logs, measure
from monoport.daemon.agents import Service
from monoport.daemon.authdoor import AuthDoor
from monoport.daemon.datadir import DataDirectory, open_data_directory
from monoport.daemon.frontdoor import Proxy
from monoport.daemon.member import Member, member
from monoport.daemon.reach import Known
from monoport.errors import Failure
from monoport.net import eventloop, heap, ports
from monoport.proxy.connection import FrontDoor

ANSWER = 2.0  # seconds that the storage has to prove that it is there: probes themselves give up after a few
TICK = 1.0  # seconds between looks at leases: a session is over 5 s after its certificate or a lock says so

_log = structlog.get_logger()


def run(config: Config) -> int:
    """Run the services that a configuration enables until SIGTERM or Ctrl-C.

    Returns the exit status. Raises Failure, before anything has started, where they cannot be run.
    """
    logs.configure(config.teleport.log.severity, config.teleport.log.format)
    _raise_descriptors()
    data, lock = open_data_directory(config.teleport.data_dir)
    try:
        bound = _bind(config)
        try:
            eventloop.run(_Daemon(config, data, bound).run())
        except ExceptionGroup as group:
            raise _first(group) from group
        finally:
            for sockets in bound.values():
                for one in sockets:
                    one.close()
    finally:
        os.close(lock)
    return 0


def _raise_descriptors() -> None:
    """Take every descriptor that the system allows: a connection needs two, and login shells allow 1024 by default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind(config: Config) -> dict[str, list[socket.socket]]:
    """Every address that the configuration names, bound: one that cannot be had is told before anything starts.

    Raises ConfigError at the key that names it.
    """
    bound: dict[str, list[socket.socket]] = {}
    keys: dict[str, str] = {}
    try:
        for name, section, key, address in _addresses(config):
            try:
                bound[name] = ports.bind(address.host, address.port)
                keys[name] = f"{section}.{key}"
                # The system lets one process bind an address twice, and fails when the second is to listen.
                for other in (one for one in bound if one != name and _overlap(bound[one], bound[name])):
                    message = f"{address} is taken by {keys[other]}; expected an address of its own"
                    raise config.error(section, key, message)
            except ports.ListenError as error:
                message = f"{error}; expected a free address of this host (does another daemon run?)"
                raise config.error(section, key, message) from error
    except BaseException:
        for sockets in bound.values():
            for one in sockets:
                one.close()
        raise
    return bound


def _overlap(some: list[socket.socket], others: list[socket.socket]) -> bool:
    """Whether a client could come to either of them at one address."""
    for one, other in itertools.product(some, others):
        here, there = one.getsockname(), other.getsockname()
        hosts = {here[0], there[0]}
        if one.family == other.family and here[1] == there[1] and (len(hosts) == 1 or hosts & {"0.0.0.0", "::"}):  # noqa: S104
            return True
    return False


def _addresses(config: Config) -> Iterator[tuple[str, str, str, Address]]:
    """What is listened on: what for, section and key of the configuration, and the address."""
    wanted = [("diag", "teleport", "diag_addr")]
    if config.auth_service.enabled:
        wanted.append(("auth", "auth_service", "listen_addr"))
    if config.proxy_service.enabled:
        ours = {"web": "web_listen_addr", "ssh": "listen_addr", "tunnel": "tunnel_listen_addr"}
        ours |= {one.name: one.listen_key for one in config.protocols.values() if one.listen_key}
        wanted += [(name, "proxy_service", key) for name, key in ours.items()]
    for name, section, key in wanted:
        address = getattr(getattr(config, section), key)
        if address is not None:
            yield name, section, key, address


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The failure to show: the first one that is meant for a user, else the first."""
    leaves = [_first(error) if isinstance(error, ExceptionGroup) else error for error in group.exceptions]
    return next((error for error in leaves if isinstance(error, Failure)), leaves[0])


@dataclass
class _Daemon:
    """One run of the daemon."""

    config: Config
    data: DataDirectory
    bound: dict[str, list[socket.socket]]
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    proxy: Proxy | None = None
    members: list[Member] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    auth: LocalAuth | None = None
    lag: Histogram = field(default_factory=Histogram)

    async def run(self) -> None:
        """Start everything in order, wait for a signal, stop everything in reverse."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        async with asyncio.TaskGroup() as group:
            # First, so that a daemon that still joins or waits for its auth service is seen to be alive, and not ready.
            watching = group.create_task(self._diagnose(self.bound.pop("diag", [])))
            running = group.create_task(self._run())
            await self.stopping.wait()
            _log.info("stopping")
            if self.proxy is not None:
                await self.proxy.drain()
            running.cancel()
            watching.cancel()

    async def _run(self) -> None:
        """Everything, until cancelled; each piece lives in a group that ends before what it stands on."""
        async with AsyncExitStack() as stack:
            local = await self._auth(stack)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            group.create_task(self._tick())
            group.create_task(
                admin.serve(self.data.socket, self._front, self._known, self._outages, self.config.protocols)
            )
            if self.config.proxy_service.enabled:
                group = await self._start_proxy(stack, local)
            for role in agents.roles(self.config):
                group = await self._start_agent(stack, local, role)
            port = self.config.proxy_service.web_listen_addr.port if self.proxy is not None else None
            heap.settle()
            _log.info("monoport is ready", version=__version__, port=port)
            self.ready.set()
            await asyncio.get_running_loop().create_future()  # until cancelled

    async def _diagnose(self, sockets: list[socket.socket]) -> None:
        """Metrics and health, where the configuration says so."""
        if sockets:
            app = diagnostics.application(Metrics(self._samples), self._readiness, self._degraded)
            async with asyncio.TaskGroup() as group:
                group.create_task(measure.watch_lag(self.lag))
                group.create_task(diagnostics.serve(sockets, app))

    def _samples(self) -> Iterator[Sample]:
        """Every metric of this moment."""
        yield Sample("info", 1, (__version__,))
        yield Sample("event_loop_lag_seconds", self.lag)
        for service, missing in self._missing().items():
            yield Sample("service_ready", not missing, (service,))
        if self.auth is not None:
            yield from measure.of_auth(self.auth)
        for one in self.members:
            yield from measure.of_member(one)
        if self.proxy is not None:
            yield from measure.of_proxy(self.proxy)
        for agent in self.services:
            yield Sample("agent_connected", agent.agent.connected.is_set(), (agent.member.role,))
            yield from agent.samples()

    async def _readiness(self) -> dict[str, str]:
        """What each service that is enabled still waits for, "" where it is ready."""
        missing = self._missing()
        if self.auth is not None and not missing["auth"] and not await self.auth.answers(ANSWER):
            missing["auth"] = "its storage does not answer"
        return missing

    def _missing(self) -> dict[str, str]:
        """As `_readiness`, without asking anybody.

        A proxy or agent stays ready while the auth service is away: it goes on with what it knows, and taking every
        one of them out of service at once would make an outage of it.
        """
        roles = agents.roles(self.config)
        names = [
            *(["auth"] if self.config.auth_service.enabled else []),
            *(["proxy"] if self._has_proxy else []),
            *roles,
        ]
        if self.stopping.is_set():
            return dict.fromkeys(names, "stopping")
        missing = dict.fromkeys(names, "starting")
        if self.auth is not None:
            missing["auth"] = "" if self.auth.ready.is_set() else "it does not answer"
        if self.proxy is not None:
            missing["proxy"] = "" if self.proxy.serving else "it does not listen"
        for service in self.services:
            connected = service.agent.connected.is_set()
            missing[service.member.role] = "" if connected else "it has no tunnel to the proxy"
        for role, outage in self._outages().items():
            if outage.refuses:
                missing[role] = missing[role] or "its audit log cannot be written"
        return missing

    def _outages(self) -> dict[str, Outage]:
        """Whether the audit log of each role that runs can be written."""
        found = {one.role: one.audit.outage for one in self.members}
        return found | ({"auth": self.auth.outage} if self.auth is not None else {})

    def _degraded(self) -> dict[str, str]:
        """Ready services that do less than they should."""
        outages = self._outages().items()
        return {role: "it goes on unrecorded" for role, one in outages if one.problem and not one.refuses}

    @property
    def _has_proxy(self) -> bool:
        return self.config.proxy_service.enabled

    async def _auth(self, stack: AsyncExitStack) -> LocalAuth | None:
        """The auth service, if it runs here, answering."""
        if not self.config.auth_service.enabled:
            return None
        local = await LocalAuth.open(
            self.data.root,
            self.config.cluster_name,
            on_failure=OnFailure(self.config.teleport.audit.on_failure),
            protocols=self.config.protocols,
        )
        self.auth = await stack.enter_async_context(local)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        group.create_task(local.run())
        await local.ready.wait()
        if "auth" in self.bound:
            group.create_task(AuthDoor(local).run(self.bound.pop("auth")))
        return local

    async def _start_proxy(self, stack: AsyncExitStack, local: LocalAuth | None) -> asyncio.TaskGroup:
        """The proxy, listening; it opens last, when the auth service has answered."""
        joined = member("proxy", self.config, self.data, local, on_renewal=self._renewed)
        own = await stack.enter_async_context(joined)
        self.members.append(own)
        self.proxy = Proxy(self.config, own)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        bound, self.bound = self.bound, {}
        group.create_task(self.proxy.run(bound))
        return group

    async def _start_agent(self, stack: AsyncExitStack, local: LocalAuth | None, role: str) -> asyncio.TaskGroup:
        """One agent, once its tunnel stands."""
        own = await stack.enter_async_context(member(role, self.config, self.data, local))
        self.members.append(own)
        service = agents.make(self.config, own, self.data)
        self.services.append(service)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        group.create_task(service.run())
        await service.agent.connected.wait()
        return group

    def _front(self) -> FrontDoor | None:
        return self.proxy.front if self.proxy is not None else None

    def _known(self) -> Known:
        """What the proxy knows of the cluster; asked only where there is one, and it is the first member."""
        return self.members[0].cache

    def _renewed(self) -> None:
        if self.proxy is not None:
            self.proxy.renewed()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = datetime.now(UTC)
            for sweep in ([self.proxy.sweep] if self.proxy is not None else []) + [one.sweep for one in self.services]:
                try:
                    sweep(now)
                except ExceptionGroup:  # what could be ended was; the rest is tried again with the next tick
                    _log.exception("some sessions could not be ended")
