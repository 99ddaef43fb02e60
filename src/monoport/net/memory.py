"""Two streams joined in memory, for stories told without sockets.

Belongs here: `pair`. Does not belong here: anything that knows what the bytes mean.
"""

from __future__ import annotations

import asyncio

from monoport.net.stream import LIMIT, LOW_WATER, ClosedError, Data, Stream


class MemoryStream(Stream):
    """One end of a pair: what is sent here arrives there in a later turn of the loop."""

    __slots__ = ("_eof_sent", "_full", "_limit", "_paused", "_peer", "_pieces", "_queued", "_scheduled")

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop)
        self._peer: MemoryStream = self
        self._limit = limit
        self._pieces: list[bytes | Exception | None] = []  # to be delivered here; None: the peer's clean end
        self._queued = 0  # bytes in _pieces
        self._paused = False
        self._full = False  # the peer was told to stop
        self._eof_sent = False
        self._scheduled = False

    @property
    def waiting(self) -> int:
        return self._peer._queued

    def _schedule(self) -> None:
        if not self._scheduled and self._pieces and not self._lost:
            self._scheduled = True
            self.loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._pieces and not self._lost:
            piece = self._pieces[0]
            if self._paused and not isinstance(piece, Exception):
                return
            del self._pieces[0]
            if piece is None:
                self._receiver.eof_received()
            elif isinstance(piece, Exception):
                self._finish(piece)
            else:
                self._queued -= len(piece)
                self._receiver.data_received(piece)
        if self._full and self._queued <= min(LOW_WATER, self._limit // 2):
            self._full = False
            if not self._peer.lost:
                self.loop.call_soon(self._peer.room_again)

    def room_again(self) -> None:
        """The peer has taken what waited."""
        if not self._lost:
            self._room_again()

    def send(self, data: Data) -> bool:
        peer = self._peer
        if self._lost or self._eof_sent:
            return True
        if peer.lost:  # as TCP does it: whoever sends to a closed peer learns that with a reset
            self._pieces.append(ConnectionResetError("the peer has closed both directions"))
            self._schedule()
            return True
        if data:
            peer._pieces.append(bytes(data))
            peer._queued += len(data)
            peer._schedule()
        peer._full = peer._full or peer._queued >= self._limit
        return not peer._full

    def send_eof(self) -> None:
        if not (self._lost or self._eof_sent):
            self._eof_sent = True
            self._peer._pieces.append(None)
            self._peer._schedule()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._schedule()

    def close(self) -> None:
        if self._lost:
            return
        self.send_eof()
        self._finish(None)

    def abort(self, error: Exception | None = None) -> None:
        if self._lost:
            return
        self._peer._pieces[:] = [ConnectionResetError("the peer has reset the connection")]
        self._peer._queued = 0
        self._peer._schedule()
        self._finish(error or ClosedError("the connection was aborted on this side"))


def pair(limit: int = LIMIT) -> tuple[Stream, Stream]:
    """Two streams joined in memory; `limit` bytes may wait in each direction."""
    a, b = MemoryStream(limit), MemoryStream(limit)
    a._peer, b._peer = b, a
    return a, b
