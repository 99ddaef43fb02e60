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
from monoport.auth.refusals import Forbidden, Invalid
from monoport.auth.resources import Resources, key_of

TTL = timedelta(seconds=60)  # three heartbeats may be lost before a resource is gone
MAX_PER_HOST = 256  # databases of one agent; what one host may make everybody else remember


class Inventory:
    """Heartbeats of the cluster's hosts.

    Args:
        resources: where they are written. records: who is still a host. ownership: whose the names are.
        now: the time, aware, UTC.
    """

    def __init__(
        self, resources: Resources, records: HostRecords, ownership: Ownership, now: Callable[[], datetime]
    ) -> None:
        self._resources = resources
        self._records = records
        self._ownership = ownership
        self._now = now
        self._written: dict[str, tuple[datetime, dict[str, object]]] = {}

    async def heartbeat(self, caller: Identity, resource: Resource) -> None:
        """Notes that a resource of the caller is there for another TTL; raises Forbidden, NameOwned or Invalid."""
        kind, name = _require_own(caller, resource)
        host = await self._records.get(caller.name)
        key = key_of(resource)
        self._forget_expired()
        if key not in self._written:
            mine = sum(1 for written in self._written if written.endswith(f"/{caller.name}"))
            if mine >= MAX_PER_HOST:
                raise Invalid(f"one host registers at most {MAX_PER_HOST} resources")
        if name != host.id:
            await self._ownership.claim(host, kind, (name,), "heartbeat")
        document, now = to_document(resource), self._now()
        last = self._written.get(key)
        if last is not None and last[1] == document and now - last[0] < TTL / 4:
            return  # said a moment ago; every write wakes every watcher
        await self._resources.put(resource, now + TTL)
        self._written[key] = (now, document)

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
                raise Forbidden(f'the hostname "{resource.spec.hostname}" is not on this host\'s certificate')
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
