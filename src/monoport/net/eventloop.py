"""asyncio's event loop, waiting on the reactor's epoll set itself.

Belongs here: `Selector`, `new_loop`, `run`. Does not belong here: what is ready (`reactor`), what is done then.

On a loop of `new_loop` the reactor's set is what the loop sleeps on: an event of a connection costs one poll and a
bound method. asyncio's descriptors, few and seldom ready, stand in a set of their own behind it. On any other loop
(of somebody else's program) the reactor's set stands behind asyncio's: all works alike, at two polls and a Handle more.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from monoport.net.reactor import BATCH, READ, Reactor

T = TypeVar("T")


class Selector(selectors.BaseSelector):
    """What asyncio registers, behind the set of the connections, which are served while asyncio waits here."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self._control = selectors.EpollSelector()  # asyncio's own
        self._control_ready = False
        self._reactor: Reactor | None = None

    def serve(self, reactor: Reactor) -> None:
        """Have `reactor` told of every event; once, before the loop runs."""
        self._reactor = reactor
        reactor.register(self._control.fileno(), READ, self._note)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, serve the connections that are ready, and return what is ready of asyncio's.

        Args:
            timeout: seconds; None: without end, 0 or less: not at all. Rounded up to milliseconds, as epoll counts.
        """
        if timeout is None:
            timeout = -1
        elif timeout <= 0:
            timeout = 0
        else:
            timeout = math.ceil(timeout * 1e3) * 1e-3
        try:
            events = self.epoll.poll(timeout, BATCH)
        except InterruptedError:
            return []
        if events and self._reactor is not None:
            self._reactor.serve(events)
            if self._control_ready:
                self._control_ready = False
                return self._control.select(0)
        return []

    def _note(self, _mask: int) -> None:
        self._control_ready = True

    # asyncio's descriptors

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._control.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._control.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._control.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._control.get_map()

    def close(self) -> None:
        if self._reactor is not None:
            self._reactor.unregister(self._control.fileno())  # they know each other: nobody else would part them
            self._reactor = None
        self._control.close()
        self.epoll.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """Make a loop that sleeps on its reactor's set."""
    selector = Selector()
    loop = asyncio.SelectorEventLoop(selector)
    selector.serve(Reactor.on(loop, selector.epoll))
    return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on such a loop: for the daemon, and for whatever else carries many bytes."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)
