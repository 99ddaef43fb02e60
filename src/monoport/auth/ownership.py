"""Whose the names of nodes and databases are: the first host that registers one owns it.

Belongs here: claiming, asking and freeing, and the audit events of both. Which names a host asks for, `join` and
`inventory` say; that it is the host it says, the API's connection has proven.

Hosts with one origin (the same join token, or the auth daemon itself) own together. A name stays owned while its
owners are silent, and is free again when none of their records is left or an administrator removes it.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Literal, NoReturn

from monoport.audit.events import EventIds, make
from monoport.auth.eventlog import EventLog
from monoport.auth.hosts import LOCAL, Host, HostRecords
from monoport.auth.names import nodenames
from monoport.auth.refusals import Conflict, Invalid, NameOwned
from monoport.auth.storage.interface import AlreadyExistsError, ConflictError, NotFoundError, Storage

Kind = Literal["node", "db"]

PREFIX = "/owners/"
MAX_CLAIMED = 1024  # names that one host was first to take; they stay, so they need a bound of their own
QUIET = timedelta(minutes=10)  # one refusal goes on with every heartbeat; the audit log has it once in this time
MAX_NOTED = 1024  # refusals remembered for that
_TRIES = 8  # compare-and-swap against other hosts; a ninth collision is not an accident


class Ownership:
    """The owned names of a cluster.

    Args:
        storage: where they are kept. records: whose owners are still there. events: the audit log.
        cluster: completes nodenames. now: the time, aware, UTC.
    """

    def __init__(
        self, storage: Storage, records: HostRecords, events: EventLog, cluster: str, now: Callable[[], datetime]
    ) -> None:
        self._storage = storage
        self._records = records
        self._events = events
        self._cluster = cluster.lower()
        self._now = now
        self._ids = EventIds(now)
        self._noted: OrderedDict[tuple[str, str, str], datetime] = OrderedDict()

    async def claim(self, host: Host, kind: Kind, names: Iterable[str], operation: str, *, anew: bool = False) -> None:
        """Makes names the host's, which must have a record, unless they are; raises NameOwned or Invalid.

        Args:
            operation: what the host asked for, for the audit log.
            anew: write even what is owned already, so that nobody who just saw the last owner go can take it.
        """
        for name in names:
            if self._outside(host, kind, name):
                await self._refuse(host, kind, name, operation, None)
            await self._claim(host, kind, name, operation, anew)

    async def require_free(self, host: Host, kind: Kind, names: Iterable[str], operation: str) -> None:
        """Raises NameOwned if others own one of the names, and the host's token does not name it."""
        for name in names:
            owner = await self._owner(kind, name)
            if owner not in (None, host.origin) and not self._within(host, kind, name) and await self._alive(owner):
                await self._refuse(host, kind, name, operation, owner)

    async def require(self, host: Host, kind: Kind, name: str, operation: str) -> None:
        """Raises NameOwned unless the host owns the name or its token names it."""
        owner = await self._owner(kind, name)
        owns = owner == host.origin and not self._outside(host, kind, name)
        if not owns and not self._within(host, kind, name):
            await self._refuse(host, kind, name, operation, owner or "nobody")

    async def owned(self, kind: Kind, name: str) -> bool:
        """Whether a name is somebody's."""
        return bool(name) and "/" not in name and await self._owner(kind, name) is not None

    async def free(self, kind: Kind, name: str) -> bool:
        """Makes a name nobody's; False if it was."""
        if not name or "/" in name:
            return False
        try:
            await self._storage.delete(f"{PREFIX}{kind}/{name}")
        except NotFoundError:
            return False
        return True

    async def remove_node(self, name: str) -> tuple[tuple[Host, ...], bool]:
        """Removes the records of the hosts called so, and frees the nodename.

        The auth daemon's own hosts keep their records: its configuration says whether they are there.

        Args:
            name: a nodename, or the id of any host.
        Returns:
            The hosts, and whether any name was freed.
        """
        asked, records = name.lower(), await self._records.list()
        found = [one for one in records if name == one.id or ("node" in one.roles and asked in self._names(one))]
        for one in found:
            if one.origin != LOCAL:
                await self._records.forget(one)
        gone = {one.id for one in found}
        kept = {each for one in records if one.id not in gone and "node" in one.roles for each in self._names(one)}
        names = {asked, f"{asked}.{self._cluster}"}
        names |= {each for one in found if "node" in one.roles for each in self._names(one)}
        freed = [await self.free("node", each) for each in sorted(names - kept)]
        return tuple(found), any(freed)

    async def _claim(self, host: Host, kind: Kind, name: str, operation: str, anew: bool) -> None:
        key = f"{PREFIX}{kind}/{name}"
        value = json.dumps({"owner": host.origin, "host_id": host.id, "since": self._now().isoformat()}).encode()
        for _ in range(_TRIES):
            item = await self._storage.get(key)
            owner = None if item is None else json.loads(item.value)["owner"]
            if owner == host.origin and not anew:
                return
            others = owner is not None and owner != host.origin
            if others and host.origin != LOCAL and await self._alive(owner):
                if self._within(host, kind, name):
                    return
                await self._refuse(host, kind, name, operation, owner)
            if owner != host.origin:
                await self._require_room(host)
            try:
                if item is None:
                    await self._storage.create(key, value)
                else:
                    await self._storage.compare_and_swap(key, value, item.revision)
            except (AlreadyExistsError, ConflictError):
                continue
            if owner != host.origin:
                await self._record("host.claimed", host, kind, name, previous=owner or "")
            return
        raise Conflict(f'the name "{name}" is being taken by others at this moment: try again')

    async def _require_room(self, host: Host) -> None:
        items = await self._storage.range(PREFIX)
        if sum(json.loads(item.value)["host_id"] == host.id for item in items) >= MAX_CLAIMED:
            raise Invalid(f"one host takes at most {MAX_CLAIMED} names")

    async def _owner(self, kind: Kind, name: str) -> str | None:
        item = await self._storage.get(f"{PREFIX}{kind}/{name}")
        return None if item is None else str(json.loads(item.value)["owner"])

    async def _alive(self, owner: str | None) -> bool:
        return any(one.origin == owner for one in await self._records.list())

    def _names(self, host: Host) -> tuple[str, ...]:
        return nodenames(host.name, self._cluster)

    def _listed(self, host: Host, kind: Kind) -> set[str]:
        """The names that the host's token lists; none where it lists none."""
        match kind:
            case "db":
                return set(host.databases)
            case "node":
                return {each for name in host.nodes for each in nodenames(name, self._cluster)}

    def _within(self, host: Host, kind: Kind, name: str) -> bool:
        return name in self._listed(host, kind)

    def _outside(self, host: Host, kind: Kind, name: str) -> bool:
        listed = self._listed(host, kind)
        return bool(listed) and name not in listed

    async def _refuse(self, host: Host, kind: Kind, name: str, operation: str, owner: str | None) -> NoReturn:
        """Raises NameOwned, and keeps an audit event of it unless the same was refused a moment ago.

        owner: whose the name is; None where the host's token is for other names.
        """
        noted, now = (host.origin, kind, name), self._now()
        rule = "the host's token lists other names" if owner is None else f"owned by {owner}"
        if noted not in self._noted or now - self._noted[noted] >= QUIET:
            self._noted[noted] = now
            self._noted.move_to_end(noted)
            while len(self._noted) > MAX_NOTED:
                self._noted.popitem(last=False)
            await self._record("host.refused", host, kind, name, operation=operation, reason=rule)
        short = name.removesuffix(f".{self._cluster}") if kind == "node" else name
        token = f'join with a token of "tctl tokens add --type={kind} --{kind}={short}"'
        word = "node" if kind == "node" else "database"
        if owner is None:
            raise NameOwned(f'the {word} name "{name}" is not one that the token of this host is for: {token}', rule)
        way_out = f'free it with "tctl rm {kind}/{short}", or {token}'
        raise NameOwned(f'the {word} name "{name}" belongs to another host: {way_out}', rule)

    async def _record(self, event_type: str, host: Host, kind: Kind, name: str, **fields: str) -> None:
        facts = {"host_id": host.id, "nodename": host.name, "origin": host.origin, "kind": kind, "name": name}
        await self._events.append([make(self._ids, event_type, {**facts, **fields})])
