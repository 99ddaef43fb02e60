"""What code writes audit events to.

Belongs here: the protocol and its two implementations. Does not: files (spool.py), reading events back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, final

from monoport.audit.events import Clock, Event, EventIds, make
from monoport.audit.outage import GAP, Outage
from monoport.audit.spool import Spool, SpoolError, Waiting


class Log(Protocol):
    """Takes events; a caller goes on only after `emit` has returned."""

    async def emit(self, type_: str, /, **fields: object) -> None:
        """Keep one event durably; raises NotRecorded if that failed, and then its session must not go on.

        Types that end with .end or .deny never fail: what they are about is over or refused, and they are kept later.

        Args:
            type_: what happened, such as "session.start".
            fields: connection, user and source always; what else the type has.
        """

    async def emit_all(self, entries: Sequence[tuple[str, Mapping[str, object]]]) -> None:
        """Keep several events, type and fields, in their order, as `emit` does one."""


def _now() -> datetime:
    return datetime.now(UTC)


@final
class SpoolLog:
    """A log on disk.

    Args:
        spool: keeps the events.
        clock: UTC.
        ids: makes identifiers; from `clock` when omitted.
        outage: what happens while events cannot be kept; sessions are refused when omitted.
    """

    def __init__(
        self, spool: Spool, clock: Clock = _now, ids: EventIds | None = None, outage: Outage | None = None
    ) -> None:
        self._spool = spool
        self._ids = ids or EventIds(clock)
        self.outage = outage or Outage("spool")
        self.kept: Counter[str] = Counter()  # by type, since the start of this process
        self.failed = 0

    @property
    def waiting(self) -> Waiting:
        """What the auth service does not have yet."""
        return self._spool.waiting

    async def emit(self, type_: str, /, **fields: object) -> None:
        await self.emit_all(((type_, fields),))

    async def emit_all(self, entries: Sequence[tuple[str, Mapping[str, object]]]) -> None:
        events = [make(self._ids, type_, fields) for type_, fields in entries]
        if not events:
            return
        try:
            await self._keep(*events)
        except SpoolError as error:
            self.failed += len(events)
            for event in events:
                self.outage.failed(event, str(error))

    async def run(self) -> None:
        """End every time in which events cannot be kept as soon as possible, until cancelled."""

        async def gap(lost: int) -> None:
            await self._keep(make(self._ids, GAP, {"lost": lost}))

        await self.outage.watch(self._spool.probe, self._keep, gap)

    async def _keep(self, *events: Event) -> None:
        await self._spool.append(*events)
        for event in events:
            self.kept[event.type] += 1


@final
class MemoryLog:
    """A log that keeps events in `events`, for scenarios over in-memory streams."""

    def __init__(self, clock: Clock = _now) -> None:
        self._ids = EventIds(clock)
        self.events: list[Event] = []

    async def emit(self, type_: str, /, **fields: object) -> None:
        await self.emit_all(((type_, fields),))

    async def emit_all(self, entries: Sequence[tuple[str, Mapping[str, object]]]) -> None:
        self.events.extend(make(self._ids, type_, fields) for type_, fields in entries)
