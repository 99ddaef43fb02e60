"""What code writes audit events to.

Belongs here: the protocol and its two implementations. Does not: files (spool.py), reading events back.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Protocol, final

from monoport.audit.events import Clock, Event, EventIds, make
from monoport.audit.spool import Spool, SpoolError, Waiting


class Log(Protocol):
    """Takes events; a caller goes on only after `emit` has returned."""

    async def emit(self, type_: str, /, **fields: object) -> None:
        """Keep one event durably; raises SpoolError if that failed, and then its session must not go on.

        Args:
            type_: what happened, such as "session.start".
            fields: connection, user and source always; what else the type has.
        """


def _now() -> datetime:
    return datetime.now(UTC)


@final
class SpoolLog:
    """A log on disk.

    Args:
        spool: keeps the events.
        clock: UTC.
        ids: makes identifiers; from `clock` when omitted.
    """

    def __init__(self, spool: Spool, clock: Clock = _now, ids: EventIds | None = None) -> None:
        self._spool = spool
        self._ids = ids or EventIds(clock)
        self.kept: Counter[str] = Counter()  # by type, since the start of this process
        self.failed = 0

    @property
    def waiting(self) -> Waiting:
        """What the auth service does not have yet."""
        return self._spool.waiting

    async def emit(self, type_: str, /, **fields: object) -> None:
        try:
            await self._spool.append(make(self._ids, type_, fields))
        except SpoolError:
            self.failed += 1
            raise
        self.kept[type_] += 1


@final
class MemoryLog:
    """A log that keeps events in `events`, for scenarios over in-memory streams."""

    def __init__(self, clock: Clock = _now) -> None:
        self._ids = EventIds(clock)
        self.events: list[Event] = []

    async def emit(self, type_: str, /, **fields: object) -> None:
        self.events.append(make(self._ids, type_, fields))
