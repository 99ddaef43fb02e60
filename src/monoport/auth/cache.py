"""What proxies and agents know of the cluster, kept in memory and kept current by one watch.

Belongs here: the copy, and staying connected. Decisions made from it belong to those who ask; while the auth service is
away the last state stays, so that they go on working.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Protocol, assert_never

import structlog

from monoport.access.resources import Database, Lock, Node, Resource, Role
from monoport.auth.authorities import TrustedCas
from monoport.auth.changes import Cas, Change, Put, Ready, Removed
from monoport.errors import Failure

_log = structlog.get_logger()

FIRST_DELAY = 0.2  # seconds: a restarting auth service is back within one
LAST_DELAY = 5.0  # seconds: locks must be known soon after it is back
Subscriber = Callable[[Change], None]
Key = tuple[str, str, str]


class Watched(Protocol):
    """What a cache needs of the client."""

    def watch(self) -> AsyncGenerator[Change, None]:
        """The snapshot, Ready, then changes; raises Failure when it ends."""


class Cache:
    """The roles, locks, nodes, databases and CAs of one cluster.

    Args:
        client: whose watch feeds it.
        cas: the CAs known before the first snapshot, from joining or from cas.json.
        sleep, rand: pausing and jitter, so that tests need neither time nor luck.
    """

    def __init__(
        self,
        client: Watched,
        cas: TrustedCas | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._cas = cas
        self._sleep, self._rand = sleep, rand
        self._resources: dict[Key, Resource] = {}
        self._roles: Mapping[str, Role] = MappingProxyType({})
        self._locks: tuple[Lock, ...] = ()
        self._subscribers: list[Subscriber] = []
        self.ready = asyncio.Event()
        self.connected = False

    @property
    def roles(self) -> Mapping[str, Role]:
        """Every role by its name."""
        return self._roles

    @property
    def locks(self) -> tuple[Lock, ...]:
        """Every lock; whether it is in force, its reader decides with the time."""
        return self._locks

    def nodes(self) -> list[Node]:
        """Every node that is there (only proxies are told)."""
        return [one for one in self._resources.values() if isinstance(one, Node)]

    def databases(self) -> list[Database]:
        """Every database that is there, once for each agent that serves it (only proxies are told)."""
        return [one for one in self._resources.values() if isinstance(one, Database)]

    @property
    def cas(self) -> TrustedCas:
        """The cluster's CAs; raises RuntimeError before anything is known."""
        if self._cas is None:
            raise RuntimeError("the cache has no CAs yet: wait for ready")
        return self._cas

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Calls back after every change, with `Ready` after every snapshot; returns what ends that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            self._subscribers.remove(callback)

        return unsubscribe

    async def run(self) -> None:
        """Follows the cluster until cancelled, reconnecting with growing, jittered pauses."""
        failures = 0
        while True:
            try:
                async with aclosing(self._client.watch()) as changes:
                    await self._follow(changes)
            except Failure as error:
                failures = 1 if self.connected else failures + 1
                self.connected = False
                pause = min(LAST_DELAY, FIRST_DELAY * 2 ** min(failures, 16)) * (0.5 + self._rand() / 2)
                _log.warning("watch ended", error=str(error), again_in=round(pause, 2))
                await self._sleep(pause)

    async def _follow(self, changes: AsyncIterator[Change]) -> None:
        snapshot: dict[Key, Resource] = {}
        in_snapshot = True
        async for change in changes:
            match change:
                case Put(resource):
                    (snapshot if in_snapshot else self._resources)[_key(resource)] = resource
                case Removed(kind, name, host_id):
                    (snapshot if in_snapshot else self._resources).pop((kind, name, host_id), None)
                case Cas(cas):
                    self._cas = cas
                case Ready():
                    # Only now: whoever reads during a reconnect must not see half a cluster.
                    self._resources, in_snapshot = snapshot, False
                    self.connected = True
                case _:
                    assert_never(change)
            if not in_snapshot or isinstance(change, Cas):
                self._tell(change)

    def _tell(self, change: Change) -> None:
        match change:
            case Put(Role()) | Put(Lock()) | Removed("role") | Removed("lock") | Ready():
                values = self._resources.values()
                self._roles = MappingProxyType({one.name: one for one in values if isinstance(one, Role)})
                self._locks = tuple(one for one in values if isinstance(one, Lock))
            case Put() | Removed() | Cas():
                pass
            case _:
                assert_never(change)
        if isinstance(change, Ready):
            self.ready.set()
        for callback in tuple(self._subscribers):
            callback(change)


def _key(resource: Resource) -> Key:
    return resource.kind, resource.name, resource.spec.host_id if isinstance(resource, Database) else ""
