"""Descriptors of a child on one side, an SSH channel on the other: bytes both ways with backpressure.

Belongs here: moving bytes. Not here: what the child is. Each direction holds at most one piece beyond the kernel's own
buffer and the channel's window.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

PIECE = 131_072  # bytes of one read: four SSH packets; more did not get cheaper


class Source:
    """Reads a descriptor, which it owns, and hands on what it says until its end.

    Args: the descriptor, what takes the bytes (False: stop until `resume`), and what to call once at the end.
    """

    def __init__(self, descriptor: int, sink: Callable[[bytes], bool], ended: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._sink, self._at_end = sink, ended
        self._reading = False
        os.set_blocking(descriptor, False)
        self.resume()

    def resume(self) -> None:
        """Go on reading."""
        if not self._reading and self._descriptor >= 0:
            self._reading = True
            self._loop.add_reader(self._descriptor, self._ready)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def _ready(self) -> None:
        try:
            data = os.read(self._descriptor, PIECE)
        except BlockingIOError:
            return
        except OSError:  # a terminal whose last user has gone answers EIO
            data = b""
        if not data:
            self.close()
        elif not self._sink(data):
            self._pause()

    def drain(self) -> None:
        """Hand on what is there already, then end: what holds the other side open may never close it."""
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, PIECE)
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._sink(data)

    def close(self) -> None:
        """Stop, close the descriptor and say so; it may be called again."""
        if self._descriptor >= 0:
            self._pause()
            os.close(self._descriptor)
            self._descriptor = -1
            self._at_end()


class Sink:
    """Writes to a descriptor, which it owns.

    Args: the descriptor, and what to call when it has room again after a `write` that answered False.
    """

    def __init__(self, descriptor: int, room: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._room = room
        self._left = bytearray()
        self._ending = False
        os.set_blocking(descriptor, False)

    def write(self, data: bytes) -> bool:
        """Write or keep `data`; False: stop until `room` is called."""
        if self._descriptor < 0 or self._ending:
            return True
        if not self._left:
            data = data[self._put(data) :]
            if not data:
                return True
            if self._descriptor < 0:
                return True
            self._loop.add_writer(self._descriptor, self._ready)
        self._left += data
        return False

    def _put(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:  # the child does not read any more: what comes is dropped, as a pipe without a reader does
            self.close()
            return len(data)

    def _ready(self) -> None:
        del self._left[: self._put(self._left)]
        if self._left or self._descriptor < 0:
            return
        self._loop.remove_writer(self._descriptor)
        if self._ending:
            self.close()
        self._room()

    def end(self) -> None:
        """Close once everything is written."""
        self._ending = True
        if not self._left:
            self.close()

    def close(self) -> None:
        """Drop what waits and close the descriptor; it may be called again."""
        if self._descriptor >= 0:
            if self._left:
                self._loop.remove_writer(self._descriptor)
                self._left.clear()
            os.close(self._descriptor)
            self._descriptor = -1
