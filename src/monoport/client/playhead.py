"""Where a replay is: time, speed, pause and seeking, as numbers.

Belongs here: which events are due at which moment. Pure. Not here: what events hold (`replay`), waiting (`player`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

SLOWEST, FASTEST = 1 / 16, 1024.0
STEP: Final = 5.0  # seconds that an arrow key moves
ASLEEP: Final = 3600.0  # seconds to wait for a key while nothing is due


@dataclass(frozen=True, slots=True)
class Due:
    """Events `first` up to, not including, `behind` are to be shown, after the screen was cleared if `anew`."""

    first: int
    behind: int
    anew: bool = False


@final
class Playhead:
    """A position in a recording.

    Args:
        times: of its events, in seconds; one that goes back counts as the one before it.
        speed: 1 as it was, 2 twice as fast.
        idle: longest pause, in seconds of the recording; None as it was.
    """

    def __init__(self, times: Iterable[float], speed: float = 1.0, idle: float | None = None) -> None:
        self._times = array("d")
        last = shown = 0.0
        for time in times:
            gap = max(0.0, time - last)
            shown += gap if idle is None else min(gap, idle)
            last = max(last, time)
            self._times.append(shown)
        self.speed = min(max(speed, SLOWEST), FASTEST)
        self.paused = False
        self.position = 0.0
        self._next = 0

    @property
    def length(self) -> float:
        """Seconds in all, at speed 1."""
        return self._times[-1] if self._times else 0.0

    @property
    def over(self) -> bool:
        """Whether everything has been shown."""
        return self._next >= len(self._times) and not self.paused

    def advance(self, seconds: float) -> Due:
        """Let so much real time pass and return what is due."""
        if not self.paused:
            self.position = min(self.length, self.position + max(0.0, seconds) * self.speed)
        return self._due()

    def wait(self) -> float:
        """Real seconds until the next event is due."""
        if self.paused or self._next >= len(self._times):
            return ASLEEP
        return max(0.0, (self._times[self._next] - self.position) / self.speed)

    def seek(self, seconds: float) -> Due:
        """Go forward, or back where negative, by seconds of the recording."""
        return self.go(self.position + seconds)

    def go(self, position: float) -> Due:
        """Go to a moment of the recording."""
        position = min(max(position, 0.0), self.length)
        back = position < self.position
        self.position = position
        if not back:
            return self._due()
        self._next = 0
        due = self._due()
        return Due(due.first, due.behind, anew=True)

    def step(self, events: int) -> Due:
        """Pause, and show one event more, or one less where negative."""
        self.paused = True
        if not self._times:
            return Due(0, 0)
        target = min(max(self._next - 1 + events, 0), len(self._times) - 1)
        before, first = self._next, self._next
        anew = target + 1 < before
        self._next = target + 1
        self.position = self._times[target]
        return Due(0 if anew else first, self._next, anew)

    def faster(self, factor: float) -> None:
        """Multiply the speed, within its bounds."""
        self.speed = min(max(self.speed * factor, SLOWEST), FASTEST)

    def _due(self) -> Due:
        first = self._next
        self._next = max(first, bisect_right(self._times, self.position))
        return Due(first, self._next)
