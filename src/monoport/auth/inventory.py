"""Which nodes and databases are there: heartbeats, and who may send which.

Belongs here: what a host may say about itself. Storing and watching is `resources`.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import assert_never

from monoport.access.identity import Identity
from monoport.access.resources import Database, Lock, Node, Resource, Role, Token, User, to_document
from monoport.auth.hosts import HostRecords
from monoport.auth.ownership import Kind, Ownership
from monoport.auth.refusals import Forbidden, Invalid, Removed
from monoport.auth.removals import Removals
from monoport.auth.resources import Resources, key_of

TTL = timedelta(seconds=60)  # three heartbeats may be lost before a resource is gone
MAX_PER_HOST = 256  # databases of one agent; what one host may make everybody else remember


class Inventory:
    """Heartbeats of the cluster's hosts.

    Args:
        resources: where they are written. records: who is still a host. ownership: whose the names are.
        removals: which databases were removed. now: the time, aware, UTC.
    """

    def __init__(
        self,
        resources: Resources,
        records: HostRecords,
        ownership: Ownership,
        removals: Removals,
        now: Callable[[], datetime],
    ) -> None:
        self._resources = resources
        self._records = records
        self._ownership = ownership
        self._removals = removals
        self._now = now
        self._written: dict[str, tuple[datetime, dict[str, object]]] = {}

    async def heartbeat(self, caller: Identity, resource: Resource, first: bool = False) -> None:
        """Notes that a resource of the caller is there for another TTL.

        Args:
            first: the caller's first of this resource since its start: what was removed before may come back.

        Raises:
            Forbidden, NameOwned, Removed, Invalid.
        """
        kind, name = _require_own(caller, resource)
        host = await self._records.get(caller.name)
        key = key_of(resource)
        self._forget_expired()
        if kind == "db" and not first:
            await self._require_allowed(key, resource)
        if key not in self._written:
            mine = sum(1 for written in self._written if written.endswith(f"/{caller.name}"))
            if mine >= MAX_PER_HOST:
                raise Invalid(f"one host registers at most {MAX_PER_HOST} resources")
        if name != host.id:
            await self._ownership.claim(host, kind, (name,), "heartbeat")
        if kind == "db" and first:
            await self._removals.begun_anew(name, host.id)
        document, now = to_document(resource), self._now()
        last = self._written.get(key)
        if last is not None and last[1] == document and now - last[0] < TTL / 4:
            return  # said a moment ago; every write wakes every watcher
        await self._resources.put(resource, now + TTL)
        self._written[key] = (now, document)

    async def _require_allowed(self, key: str, resource: Resource) -> None:
        try:
            await self._removals.require_allowed(resource.name, key.rpartition("/")[2])
        except Removed:
            if self._written.pop(key, None) is not None:  # it may have been on its way while it was removed
                await self._resources.withdraw(resource)
            raise

    def _forget_expired(self) -> None:
        limit = self._now() - TTL
        for key in [key for key, (when, _) in self._written.items() if when < limit]:
            del self._written[key]


def _require_own(caller: Identity, resource: Resource) -> tuple[Kind, str]:
    """Which name of which kind the caller registers; raises Forbidden or Invalid."""
    claimed: tuple[Kind, str]
    match resource:
        case Node():
            if "node" not in caller.roles:
                raise Forbidden("only nodes register nodes", f"host with roles {', '.join(caller.roles)}")
            if resource.spec.hostname.lower() not in caller.principals:
                what = f'the hostname "{resource.spec.hostname}" is not on this host\'s certificate'
                raise Forbidden(what, f"certificate of {', '.join(caller.principals)}")
            claimed = ("node", resource.spec.hostname.lower())
        case Database():
            if "db" not in caller.roles:
                raise Forbidden("only database agents register databases", f"host with roles {', '.join(caller.roles)}")
            claimed = ("db", resource.name)
        case Role() | Lock() | Token() | User():
            raise Invalid(f"a {resource.kind} has no heartbeat")
        case _:
            assert_never(resource)
    if resource.spec.host_id != caller.name:
        raise Forbidden("hosts register only what is their own", f"{caller} for host id {resource.spec.host_id}")
    return claimed
