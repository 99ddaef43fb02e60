"""One role of this daemon as a member of its cluster: certificates, the auth service, what is known, what is recorded.

Belongs here: opening and closing those together, and keeping them current. Does not belong here: what the role serves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from monoport.audit.log import SpoolLog
from monoport.audit.outage import OnFailure, Outage
from monoport.audit.ship import ship
from monoport.audit.spool import Spool
from monoport.auth.cache import Cache
from monoport.auth.client import AuthClient, tcp
from monoport.auth.local import LocalAuth
from monoport.auth.transport import Dial
from monoport.config import Config
from monoport.daemon.datadir import DataDirectory
from monoport.daemon.host import Host, Identities, join
from monoport.errors import Failure

RENEWAL_SECONDS = 300.0  # between looks whether half of a certificate's life is over; that life is a day or more
JOIN_SECONDS = 30.0  # that joining is tried again while nobody answers: machines boot in any order
JOIN_PAUSE = 1.0  # seconds between tries, doubled with jitter by luck

_log = structlog.get_logger()


def certificate_names(config: Config) -> tuple[str, ...]:
    """The names of this proxy's certificate that follow from its configuration; auth adds routing's own."""
    hosts = [host.strip("[]") for host in config.public_hosts]
    above = [host for host in hosts if ":" not in host]  # nothing lies under an IPv6 address, and no SNI says one
    return tuple(dict.fromkeys([*hosts, *(f"kube.{host}" for host in above), *(f"*.db.{host}" for host in above)]))


@dataclass(frozen=True, slots=True)
class Member:
    """One role in the cluster, as long as it runs."""

    role: str
    host: Host
    client: AuthClient
    cache: Cache
    audit: SpoolLog
    dial_auth: Dial


@asynccontextmanager
async def member(
    role: str,
    config: Config,
    data: DataDirectory,
    local: LocalAuth | None,
    *,
    on_renewal: Callable[[], None] | None = None,
) -> AsyncIterator[Member]:
    """Be a member of the cluster while the body runs; enters when roles, locks and CAs are known.

    Args: the role ("proxy", "node", "db"), where things are, the auth service if it is in this process.
    Raises Failure: no identity and none to be had.
    """
    identities = Identities(data.root)
    names = certificate_names(config) if role == "proxy" else ()
    host = await _identity(role, config, identities, local, names)
    dial = _dial(config, local)
    async with AuthClient(dial, lambda: host.credentials) as client:
        cache = Cache(client, host.credentials.cas)
        spool = await Spool.open(data.spool / role)
        audit = SpoolLog(spool, outage=Outage(role, OnFailure(config.teleport.audit.on_failure)))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(cache.run()),
                    group.create_task(ship(spool, client.emit_payloads)),
                    group.create_task(audit.run()),
                    group.create_task(_renew(host, client, identities, on_renewal)),
                ]
                await cache.ready.wait()
                host.trust(cache.cas)
                unsubscribe = cache.subscribe(lambda _change: host.trust(cache.cas))
                if not host.carries(names):  # the configuration names others than it did
                    await identities.renew(host, client, names)
                elif host.renewal_due(datetime.now(UTC)):
                    await _try_renewal(host, client, identities)
                yield Member(role, host, client, cache, audit, dial)
                unsubscribe()
                for task in tasks:
                    task.cancel()
        finally:
            await spool.close()


async def _identity(
    role: str, config: Config, identities: Identities, local: LocalAuth | None, names: tuple[str, ...]
) -> Host:
    host = identities.load(role, local.cas.cluster if local is not None else "")
    if local is not None:
        if host is not None and set(host.credentials.cas.host) & set(local.cas.host):
            return host
        pair, granted = await local.admit(role, config.teleport.nodename, names)
        return identities.keep(role, pair, granted)
    if host is not None:
        return host
    deadline = asyncio.get_running_loop().time() + JOIN_SECONDS
    while True:
        try:
            return await join(config, role, identities)
        except Failure as error:
            if not str(error).startswith("cannot reach") or asyncio.get_running_loop().time() > deadline:
                raise Failure(f"this host cannot join as {role}: {error}") from error
            _log.warning("nobody to join answers yet", role=role, error=str(error))
            await asyncio.sleep(JOIN_PAUSE * (1 + random.random()))  # noqa: S311 # jitter, not a secret


def _dial(config: Config, local: LocalAuth | None) -> Dial:
    if local is not None:
        return local.dial()
    address = config.teleport.auth_server or config.teleport.proxy_server
    if address is None:
        raise Failure(
            "neither teleport.auth_server nor teleport.proxy_server is set: there is no auth service to reach"
        )
    return tcp(address.host, address.port)


async def _renew(host: Host, client: AuthClient, identities: Identities, done: Callable[[], None] | None) -> None:
    while True:
        await asyncio.sleep(RENEWAL_SECONDS)
        if host.renewal_due(datetime.now(UTC)) and await _try_renewal(host, client, identities) and done is not None:
            done()


async def _try_renewal(host: Host, client: AuthClient, identities: Identities) -> bool:
    """Renew; where that fails, whatever the old certificate still allows goes on, and it is tried again later."""
    try:
        await identities.renew(host, client)
    except (Failure, OSError) as error:
        _log.error("host certificate not renewed", role=host.role, until=str(host.expires), error=str(error))
        return False
    return True
