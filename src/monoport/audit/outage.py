"""A time in which audit events cannot be kept: what is known of it, what waits, and its end without a restart.

Belongs here: the policy, the events that wait meanwhile in memory, trying again. Does not: files (spool.py, and the
auth service's event log), what is refused to whom.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

import structlog

from monoport.audit.events import Event, encode
from monoport.audit.segments import SpoolError

_log = structlog.get_logger()

PAUSE: Final = 1.0  # seconds between tries: space is back, and so is the service, within that
REMIND: Final = 60.0  # seconds between lines that say that it still lasts
MOST: Final = 16 * 1024 * 1024  # bytes of events that wait in memory: some 30 000 statements; what is beyond is lost
GAP: Final = "audit.gap"  # the type of the event that says how many were lost


class OnFailure(StrEnum):
    """What happens to sessions while their events cannot be kept."""

    REFUSE = "refuse"
    CONTINUE = "continue"


class NotRecorded(SpoolError):
    """An event was not kept, so what it belongs to must not go on; for users, who learn nothing of files."""

    def __init__(self) -> None:
        super().__init__("the audit log cannot be written; tell your administrator")


@dataclass(frozen=True, slots=True)
class Health:
    """How an audit log is: what hinders it, if anything, what follows, and its events in memory and lost."""

    problem: str
    on_failure: OnFailure
    waiting: int
    lost: int


@final
class Outage:
    """Notices that events cannot be kept, holds those that wait, and puts them down once they can be.

    Args:
        name: whose log it is, for the daemon's own log.
        on_failure: whether what can be refused is refused.
        clock: seconds, monotonic.
    """

    def __init__(
        self, name: str, on_failure: OnFailure = OnFailure.REFUSE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._clock = name, clock
        self.on_failure = on_failure
        self.problem = ""  # why events cannot be kept now
        self.lost = 0  # since the start of this process, for good
        self._unsaid = 0  # of those, in no event yet
        self._waiting: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._begun = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many events wait in memory."""
        return len(self._waiting)

    @property
    def health(self) -> Health:
        """How the log is now."""
        return Health(self.problem, self.on_failure, self.waiting, self.lost)

    @property
    def refuses(self) -> bool:
        """Whether what begins now is to be refused, because its events could not be kept."""
        return bool(self.problem) and self.on_failure is OnFailure.REFUSE

    def begin(self, problem: str) -> None:
        """Note that an event could not be kept; loud, once."""
        if not self.problem:
            follows = "sessions go on unrecorded" if self.on_failure is OnFailure.CONTINUE else "sessions are refused"
            _log.error("the audit log cannot be written", log=self._name, error=problem, follows=follows)
        self.problem = problem
        self._begun.set()

    def failed(self, event: Event, problem: str) -> None:
        """Decide about an event that could not be kept.

        What is over, or refused anyway, is not undone by failing: such events wait in memory, as all do where sessions
        go on. Raises NotRecorded for every other.
        """
        self.begin(problem)
        if self.on_failure is OnFailure.REFUSE and not event.type.endswith((".end", ".deny")):
            raise NotRecorded
        size = len(encode(event))
        if self._bytes + size > MOST:
            self._lose(1)
            return
        self._waiting.append((event, size))
        self._bytes += size

    def _lose(self, count: int) -> None:
        self.lost += count
        self._unsaid += count

    async def end(self, probe: Callable[[], Awaitable[object]], keep: Callable[[Event], Awaitable[object]]) -> None:
        """Try whether events can be kept again, and then keep those that wait, in their order; raises SpoolError."""
        await probe()
        while self._waiting:
            event, size = self._waiting[0]
            await keep(event)
            self._waiting.popleft()
            self._bytes -= size

    async def watch(
        self,
        probe: Callable[[], Awaitable[object]],
        keep: Callable[[Event], Awaitable[object]],
        gap: Callable[[int], Awaitable[object]],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """End every outage as soon as possible, until cancelled.

        Args:
            probe: raises SpoolError while nothing can be kept. keep: keeps one event. gap: notes how many were lost.
            sleep: pausing, so that tests need no time.
        """
        try:
            while True:
                await self._begun.wait()
                await self._last(probe, keep, gap, sleep)
                self._begun.clear()
        finally:
            if self._waiting:
                self._lose(len(self._waiting))
                _log.error("audit events lost", log=self._name, events=len(self._waiting))

    async def _last(
        self,
        probe: Callable[[], Awaitable[object]],
        keep: Callable[[Event], Awaitable[object]],
        gap: Callable[[int], Awaitable[object]],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        began = said = self._clock()
        while True:
            await sleep(PAUSE)
            try:
                kept = len(self._waiting)
                await self.end(probe, keep)
                if self._unsaid:
                    await gap(self._unsaid)
            except SpoolError as error:
                self.problem = str(error)
                if self._clock() - said >= REMIND:
                    said = self._clock()
                    seconds = round(said - began)
                    _log.error("the audit log still cannot be written", log=self._name, error=str(error), for_s=seconds)
                continue
            seconds = round(self._clock() - began)
            _log.warning(
                "the audit log is written again", log=self._name, late=kept, lost=self._unsaid, after_s=seconds
            )
            self.problem, self._unsaid = "", 0
            return
