"""Roles, locks, nodes and databases as stored, and their changes as a stream.

Belongs here: keys, reading and writing documents, the watch's lines. Who may, `service` asks `permissions`.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

from monoport.access.presets import PRESETS
from monoport.access.resources import Database, Lock, Resource, Role, parse_document, to_document
from monoport.auth.refusals import Exists, NotFound
from monoport.auth.storage.interface import AlreadyExistsError, Change, CompactedError, NotFoundError, Storage

PREFIX = "/resources/"
SEEDED = "/cluster/presets"  # there once the presets were written: an administrator may remove one for good

Line = Mapping[str, Any]
Write = Callable[[Line], Awaitable[None]]


def key_of(resource: Resource) -> str:
    """Where a resource is stored; databases of one name once for each agent that serves them."""
    if isinstance(resource, Database):
        return f"{PREFIX}db/{resource.name}/{resource.spec.host_id}"
    return f"{PREFIX}{resource.kind}/{resource.name}"


class Resources:
    """The stored resources of a cluster that its proxies and agents watch.

    Args:
        storage: where they are kept, under PREFIX.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def seed(self) -> None:
        """Writes the preset roles of a new cluster; interrupted, the next start finishes it."""
        if await self._storage.get(SEEDED) is not None:
            return
        for role in PRESETS.values():
            await self.put(role)
        await self._storage.put(SEEDED, b"{}")

    async def list(self, kind: str) -> tuple[Resource, ...]:
        """Every resource of a kind, by name."""
        return tuple(_read(item.value) for item in await self._storage.range(f"{PREFIX}{kind}"))

    async def roles(self) -> Mapping[str, Role]:
        """Every role by its name."""
        return {one.name: one for one in await self.list("role") if isinstance(one, Role)}

    async def locks(self) -> tuple[Lock, ...]:
        """Every lock."""
        return tuple(one for one in await self.list("lock") if isinstance(one, Lock))

    async def get(self, kind: str, name: str) -> Resource:
        """One resource (of several databases of one name, the first); raises NotFound."""
        for item in await self._storage.range(f"{PREFIX}{kind}/{name}"):
            return _read(item.value)
        raise NotFound(f"no {kind}/{name}")

    async def put(self, resource: Resource, expires: datetime | None = None) -> None:
        """Writes a resource over what there may be."""
        await self._storage.put(key_of(resource), _write(resource), expires)

    async def create(self, resource: Resource, expires: datetime | None = None) -> None:
        """Writes a new resource; raises Exists."""
        try:
            await self._storage.create(key_of(resource), _write(resource), expires)
        except AlreadyExistsError:
            message = f"{resource.kind}/{resource.name} exists: --force replaces it"
            raise Exists(message) from None

    async def delete(self, kind: str, name: str) -> None:
        """Removes a resource (of databases, for every agent); raises NotFound."""
        found = await self._storage.range(f"{PREFIX}{kind}/{name}")
        if not found:
            raise NotFound(f"no {kind}/{name}")
        for item in found:
            try:
                await self._storage.delete(item.key)
            except NotFoundError:
                continue  # it expired or somebody else removed it: gone is gone

    async def withdraw(self, resource: Resource) -> None:
        """Removes what one host registered; nothing happens if it is gone already."""
        try:
            await self._storage.delete(key_of(resource))
        except NotFoundError:
            return

    async def delete_of_host(self, host_id: str) -> bool:
        """Removes what a host has registered; False if that is nothing."""
        databases = await self._storage.range(f"{PREFIX}db")
        keys = [one.key for one in databases if one.key.endswith(f"/{host_id}")]
        found = False
        for key in (f"{PREFIX}node/{host_id}", *keys):
            try:
                await self._storage.delete(key)
            except NotFoundError:
                continue
            found = True
        return found

    async def follow(self, kinds: frozenset[str], cas: Callable[[], Line], cas_prefix: str, write: Write) -> None:
        """Writes one watch: the snapshot, ready, then every change; ends when the watcher fell too far behind.

        Args:
            kinds: which kinds the watcher may know of.
            cas: the cluster's CAs as JSON; asked again after changes under `cas_prefix`.
            write: takes one line and returns when there is room for the next.
        """
        snapshot = await self._storage.snapshot(PREFIX)
        await write({"type": "cas", "cas": cas()})
        for item in snapshot.items:
            if _kind_of(item.key) in kinds:
                await write({"type": "put", "document": json.loads(item.value)})
        await write({"type": "ready"})
        try:
            async with aclosing(self._storage.watch("/", snapshot.revision)) as changes:  # type: ignore[type-var]
                async for change in changes:
                    if change.key.startswith(cas_prefix):
                        await write({"type": "cas", "cas": cas()})
                    elif change.key.startswith(PREFIX) and _kind_of(change.key) in kinds:
                        await write(_line(change))
        except CompactedError:
            return


def _line(change: Change) -> Line:
    if change.item is not None:
        return {"type": "put", "document": json.loads(change.item.value)}
    kind, name, *host = change.key.removeprefix(PREFIX).split("/")
    return {"type": "removed", "kind": kind, "name": name, "host_id": host[0] if host else ""}


def _kind_of(key: str) -> str:
    return key.removeprefix(PREFIX).partition("/")[0]


def _write(resource: Resource) -> bytes:
    return json.dumps(to_document(resource)).encode()


def _read(value: bytes) -> Resource:
    return parse_document(json.loads(value))
