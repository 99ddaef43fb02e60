"""What was permitted and still runs, so that it can be ended in time.

Belongs here: keeping leases and finding those that expired or were locked. Does not: tickers, closing connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import final

from monoport.access.claims import Identity
from monoport.access.locks import lock_for
from monoport.access.resources import Lock

End = Callable[[str], None]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """One running use; `close` it when the use is over."""

    leases: Leases
    identity: Identity
    until: datetime
    end: End
    nodes: tuple[str, ...]
    login: str | None

    def due(self, now: datetime, locks: Iterable[Lock]) -> str:
        """Why the use must have ended by now (UTC), with these locks there are; "" if it may go on."""
        return _why_end(self, now, [lock for lock in locks if lock.in_force(now)])

    def close(self) -> None:
        """Forget the lease; it may be called again."""
        self.leases.forget(self)


@final
class Leases:
    """Every running use of a process. Not thread-safe: it lives on the loop's thread."""

    def __init__(self) -> None:
        self._running: dict[Lease, None] = {}  # a dict keeps the order in which they began

    def __len__(self) -> int:
        return len(self._running)

    def add(
        self, identity: Identity, until: datetime, end: End, *, nodes: Iterable[str] = (), login: str | None = None
    ) -> Lease:
        """Keep a use until it is closed, expires or is locked.

        Args:
            identity: who uses.
            until: UTC instant at which it ends at the latest; the identity's own end counts too.
            end: called once, with the reason, when the use must end; it must not wait.
            nodes: host id and hostname of the node used, for locks.
            login: login used on it, for locks.
        """
        lease = Lease(self, identity, min(until, identity.expires), end, tuple(nodes), login)
        self._running[lease] = None
        return lease

    def forget(self, lease: Lease) -> None:
        """Drop a lease without ending its use."""
        self._running.pop(lease, None)

    def sweep(self, now: datetime, locks: Iterable[Lock]) -> int:
        """End every use that has expired or is locked, and return how many.

        Args:
            now: UTC.
            locks: every lock there is.

        Raises:
            ExceptionGroup: what `end` callbacks raised, after all of them were called.
        """
        in_force = [lock for lock in locks if lock.in_force(now)]
        ending = [(lease, reason) for lease in self._running if (reason := _why_end(lease, now, in_force))]
        errors: list[Exception] = []
        for lease, reason in ending:
            self.forget(lease)
            try:
                lease.end(reason)
            except Exception as error:  # noqa: BLE001  one broken session must not keep the others alive
                errors.append(error)
        if errors:
            raise ExceptionGroup("leases did not end cleanly", errors)
        return len(ending)


def _why_end(lease: Lease, now: datetime, locks: list[Lock]) -> str:
    if now >= lease.until:
        return "certificate expired" if now >= lease.identity.expires else "session reached its longest time"
    lock = lock_for(lease.identity, locks, now, nodes=lease.nodes, login=lease.login)
    if lock is None:
        return ""
    return f"{lock.spec.target} was changed: sign in again" if lock.passes else f"locked: {lock.spec.target}"
