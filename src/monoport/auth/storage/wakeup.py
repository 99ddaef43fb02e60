"""How watches hear that there is something new, without a queue that a slow one could fill.

Belongs here: waking watchers of one loop. Does not: what is new; each watcher reads that from the store itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import final

from monoport.auth.storage.interface import Change


@final
class Wakeups:
    """Wakes every waiting watcher; lives on the loop's thread."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.closed = False

    def wake(self) -> None:
        """Let every watcher look again."""
        self._event.set()
        self._event = asyncio.Event()

    def close(self) -> None:
        """Wake every watcher for the last time."""
        self.closed = True
        self.wake()

    async def follow(
        self, after: int, read: Callable[[int], Awaitable[tuple[list[Change], int]]]
    ) -> AsyncIterator[Change]:
        """Yield what `read(position)` returns, from `after` on, until closed.

        Args:
            after: revision to begin behind.
            read: returns the next changes and the position behind them; the same position means nothing new.
        """
        position = after
        while not self.closed:
            news = self._event  # taken before reading, so that what comes meanwhile is not missed
            changes, reached = await read(position)
            for change in changes:
                yield change
            if reached == position:
                await news.wait()
            position = reached
