"""Many deadlines of the same length with one timer.

Belongs here: `Deadlines`. Does not belong here: what happens to those who are late.

asyncio's timers cost a Handle and two heap operations each, and cancelled ones stay in the heap for a while. All
connections share a few lengths of time, so they can stand in line: who began first is late first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Waiting = TypeVar("Waiting")


class Deadlines(Generic[Waiting]):
    """Calls `late(thing)` for every thing that has waited `seconds` and was not `done` by then."""

    __slots__ = ("_due", "_late", "_loop", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, late: Callable[[Waiting], None]) -> None:
        self.seconds = seconds
        self._loop = loop
        self._late = late
        self._due: dict[Waiting, float] = {}  # in the order in which they fall due
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def begin(self, thing: Waiting, now: float) -> None:
        """Count from `now`, the loop's clock; a thing already waiting begins anew."""
        due = self._due
        if thing in due:
            del due[thing]
        due[thing] = now + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_at(now + self.seconds, self._expire)

    def done(self, thing: Waiting) -> None:
        """What was waited for has happened; it may have happened before."""
        self._due.pop(thing, None)

    def stop(self) -> None:
        """Forget everyone."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = []
        for thing, due in self._due.items():
            if due > now:
                self._timer = self._loop.call_at(due, self._expire)
                break
            late.append(thing)
        for thing in late:
            if self._due.pop(thing, None) is not None:
                self._late(thing)
