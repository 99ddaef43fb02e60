"""The hosts that a cluster remembers: who may renew, and by what right each of them is here.

Belongs here: the records. What a token is exchanged for is `join`; which names hosts keep from others is `ownership`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from monoport.auth.refusals import Forbidden
from monoport.auth.storage.interface import NotFoundError, Storage

PREFIX = "/hosts/"
LOCAL = "local"  # origin of the hosts of the auth daemon itself, which joined with no token


@dataclass(frozen=True, slots=True)
class Host:
    """A host as remembered.

    Args:
        id: its name in the cluster for good. name: its nodename. roles: system roles.
        names: of a proxy's TLS certificate.
        origin: what it owns names in common with: `LOCAL`, "token/<id>", or "host/<id>" where nothing else is known.
        nodes, databases: the only names that its token lets it serve; empty where the token names none.
    """

    id: str
    name: str
    roles: tuple[str, ...]
    names: tuple[str, ...] = ()
    origin: str = ""
    nodes: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()


class HostRecords:
    """The records of a cluster's hosts.

    Args:
        storage: where they are kept. now: the time, aware, UTC.
    """

    def __init__(self, storage: Storage, now: Callable[[], datetime]) -> None:
        self._storage = storage
        self._now = now

    async def get(self, host_id: str) -> Host:
        """One host; raises Forbidden for one that was removed, whatever its certificate says."""
        item = None if "/" in host_id else await self._storage.get(PREFIX + host_id)
        if item is None:
            raise Forbidden(f"the host {host_id} was removed: it has to join again", "no such host")
        return _read(item.value)

    async def list(self) -> list[Host]:
        """Every host."""
        return [_read(item.value) for item in await self._storage.range(PREFIX)]

    async def remember(self, host: Host) -> None:
        """Keeps a host, new or changed."""
        value = {"id": host.id, "name": host.name, "roles": host.roles, "names": host.names, "origin": host.origin}
        value |= {"nodes": host.nodes, "databases": host.databases, "seen": self._now().isoformat()}
        await self._storage.put(PREFIX + host.id, json.dumps(value).encode())

    async def forget(self, host: Host) -> None:
        """Drops a host; nothing happens if it is gone already."""
        try:
            await self._storage.delete(PREFIX + host.id)
        except NotFoundError:
            return


def _read(value: bytes) -> Host:
    stored = json.loads(value)
    return Host(
        stored["id"],
        stored["name"],
        tuple(stored["roles"]),
        tuple(stored["names"]),
        stored.get("origin") or f"host/{stored['id']}",  # remembered before hosts had an origin
        tuple(stored.get("nodes", ())),
        tuple(stored.get("databases", ())),
    )
