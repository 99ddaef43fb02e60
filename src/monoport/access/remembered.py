"""Permits of one session that it asks for again and again, as with every command of a protocol that names its database.

Belongs here: when an earlier yes still holds. Does not: deciding (decide.py), ending what was permitted (lease.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, final

from monoport.access.claims import Identity
from monoport.access.decide import Action, Denied, Permit, authorize
from monoport.access.resources import Database, Lock, Node, Role

MOST: Final = 64  # permits that one session keeps: databases that it goes to and fro between


@final
class Remembered:
    """Decides as `authorize` does, for one identity, and says yes again where nothing has changed that it depends on.

    A yes is said again while resource, roles and locks are the very objects that it was found with (who watches the
    cluster replaces them when anything changes), and no longer than the permit lasts. A no is found anew each time.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._resource: Node | Database | None = None
        self._roles: Mapping[str, Role] | None = None
        self._locks: Iterable[Lock] | None = None
        self._permits: dict[Action, Permit] = {}

    def authorize(
        self,
        resource: Node | Database,
        action: Action,
        roles: Mapping[str, Role],
        locks: tuple[Lock, ...],
        now: datetime,
    ) -> Permit | Denied:
        """Decide whether the identity may do `action` to `resource`: see `decide.authorize`."""
        if self._resource is not resource or self._roles is not roles or self._locks is not locks:
            self._permits.clear()
            self._resource, self._roles, self._locks = resource, roles, locks
        known = self._permits.get(action)
        if known is not None and now < known.until:
            return known
        decision = authorize(self._identity, resource, action, roles, locks, now)
        if isinstance(decision, Permit):
            if len(self._permits) >= MOST:
                self._permits.clear()
            self._permits[action] = decision
        return decision
