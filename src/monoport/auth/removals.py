"""Databases that an administrator removed, which agents that were running then do not bring back.

Belongs here: the marks. What else a removal does, `administration` knows; how an agent hears of it, `inventory`.

A removed database stays away until its agent is restarted, which its first heartbeat says, or an administrator allows
it again. That keeps order among honest agents; who must be kept out loses its host (`tctl rm node/HOST-ID`).
"""

import json
from collections.abc import Callable
from datetime import datetime

from monoport.auth.refusals import Conflict, Removed
from monoport.auth.storage.interface import ConflictError, NotFoundError, Storage

PREFIX = "/removed/db/"
_TRIES = 8  # compare-and-swap against other agents; a ninth collision is not an accident


class Removals:
    """The marks of removed databases: each names the hosts that have begun anew since.

    Args:
        storage: where they are kept. now: the time, aware, UTC.
    """

    def __init__(self, storage: Storage, now: Callable[[], datetime]) -> None:
        self._storage = storage
        self._now = now

    async def mark(self, name: str) -> None:
        """Keeps every agent that runs now from registering a database again."""
        value = {"since": self._now().isoformat(), "again": []}
        await self._storage.put(PREFIX + name, json.dumps(value).encode())

    async def allow(self, name: str) -> bool:
        """Lets running agents register a database again; False if it was not removed."""
        if not name or "/" in name:
            return False
        try:
            await self._storage.delete(PREFIX + name)
        except NotFoundError:
            return False
        return True

    async def require_allowed(self, name: str, host_id: str) -> None:
        """Raises Removed if the database was removed and the host has not begun anew since."""
        item = await self._storage.get(PREFIX + name)
        if item is not None and host_id not in json.loads(item.value)["again"]:
            way_out = f"restart its agent or run tctl db allow {name} to have it back"
            raise Removed(f'the database "{name}" was removed by an administrator: {way_out}', "removed")

    async def begun_anew(self, name: str, host_id: str) -> None:
        """Notes that the host's agent has started since the removal, if there was one."""
        for _ in range(_TRIES):
            item = await self._storage.get(PREFIX + name)
            if item is None:
                return
            value = json.loads(item.value)
            if host_id in value["again"]:
                return
            value["again"].append(host_id)
            try:
                await self._storage.compare_and_swap(item.key, json.dumps(value).encode(), item.revision)
            except ConflictError:
                continue
            return
        raise Conflict(f'the database "{name}" is being registered by others at this moment: try again')
