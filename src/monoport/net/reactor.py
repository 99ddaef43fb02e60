"""One epoll set inside asyncio's loop.

Belongs here: readiness of descriptors, one bound method each. Does not belong here: what is done with them.

Every connection costs one dictionary entry and no Handle, TimerHandle or selector key. Control code stays ordinary
asyncio in the same thread. A loop of `eventloop.new_loop` sleeps on the set itself; any other loop sees a single
descriptor, the set's own.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from monoport.net.deadlines import Deadlines
from monoport.net.stream import CHUNK

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
BATCH = 256  # events per turn: keeps timers and other tasks of the loop waiting for a few milliseconds at most

ROUNDS = 4  # polls per turn: what became ready meanwhile is served without a turn of asyncio's loop in between

Ready = Callable[[int], Any]


class Reactor:
    """Calls one bound method per ready descriptor, level-triggered, from inside an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: select.epoll | None = None) -> None:
        """`epoll`: a set whose owner polls it and calls `serve`; one of its own, behind the loop's, if omitted."""
        self._loop = ref(loop)  # weak: the loop holds the reactor, and a closed loop shall free it
        self._epoll = epoll or select.epoll()
        self._ready: dict[int, Ready] = {}
        # Shared by every connection of this loop: whoever reads has consumed it before the next event.
        self.buffer = memoryview(bytearray(CHUNK))
        self.shared: object = None  # what TLS keeps once per loop
        self.idle_lines: dict[float, Deadlines[Any]] = {}  # the relays' idle limits, by seconds
        if epoll is None:
            loop.add_reader(self._epoll.fileno(), self._dispatch)

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> Reactor:
        """The one reactor of `loop`, made when first asked for."""
        global _recent  # noqa: PLW0603  one loop per process is the rule: it skips a weak dictionary's lookup
        known, reactor = _recent
        if known is loop and reactor is not None:
            return reactor
        reactor = _reactors.get(loop)
        if reactor is None:
            reactor = _reactors[loop] = Reactor(loop)
        _recent = (loop, reactor)
        return reactor

    @staticmethod
    def on(loop: asyncio.AbstractEventLoop, epoll: select.epoll) -> Reactor:
        """Make the reactor of a new loop that polls `epoll` itself."""
        reactor = _reactors[loop] = Reactor(loop, epoll)
        return reactor

    def register(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready(mask)` whenever one of `events` (READ, WRITE) holds for `fd`."""
        self._epoll.register(fd, events)
        self._ready[fd] = ready

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events on a registered descriptor; errors and hang-ups are always reported."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget `fd`, which stays open."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Forget `fd`, which is closed next.

        The kernel takes a closed descriptor out of the set, unless a forked child holds a copy: from the first fork
        without exec on, it is taken out by name.
        """
        if self._ready.pop(fd, None) is not None and _forked:
            self._epoll.unregister(fd)

    def _dispatch(self) -> None:
        for _ in range(ROUNDS):
            events = self._epoll.poll(0, BATCH)
            if not events:
                return
            self.serve(events)

    def serve(self, events: list[tuple[int, int]]) -> None:
        """Call whoever waits for these events of the set: (descriptor, mask)."""
        ready = self._ready
        for fd, mask in events:
            # Gone: an earlier event of this batch closed it. Reused since: its own read finds nothing yet.
            callback = ready.get(fd)
            if callback is None:
                continue
            try:
                callback(mask)
            except Exception as error:  # noqa: BLE001  one connection's error never stops the others; it is reported
                self._broken(fd, callback, error)

    def _broken(self, fd: int, callback: Ready, error: Exception) -> None:
        if self._ready.get(fd) == callback:
            owner: Any = getattr(callback, "__self__", None)
            if hasattr(owner, "abort"):
                owner.abort(error)
            self.unregister(fd)
        loop = self._loop()
        if loop is not None:
            loop.call_exception_handler({"message": f"a receiver failed on descriptor {fd}", "exception": error})


_forked = False


def _has_forked() -> None:
    global _forked  # noqa: PLW0603  a fact about the process
    _forked = True


os.register_at_fork(after_in_parent=_has_forked)

_recent: tuple[asyncio.AbstractEventLoop | None, Reactor | None] = (None, None)
_reactors: WeakKeyDictionary[asyncio.AbstractEventLoop, Reactor] = WeakKeyDictionary()
