"""What every connection looks like: a stream of bytes with two directions that end one by one.

Belongs here: the `Stream` interface, the awaitables built on its primitives, its limits and errors. Does not
belong here: any transport (`sockets`, `tls`, `memory`, the tunnel's channels implement it).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Protocol, Self

from monoport.net.wakeup import Wakeup

Data = bytes | bytearray | memoryview


LIMIT = 256 * 1024  # the most that may wait in one direction of one connection
CHUNK = 192 * 1024  # one read of a socket: twelve full TLS records; more did not get cheaper per byte
HIGH_WATER = LIMIT - CHUNK  # a sender stops here, so that the chunk it may still hold fits below LIMIT
LOW_WATER = 16 * 1024  # and goes on here: one TLS record
INBOX = 64 * 1024  # what arrives before anybody reads: a whole ClientHello of the largest size accepted


class EndOfStream(ConnectionError):
    """The peer ended its direction before everything that was asked for had come."""


class TruncatedError(ConnectionError):
    """A TLS peer's connection ended without close_notify: an attacker could have cut it (RFC 8446 section 6.1)."""


class ClosedError(ConnectionError):
    """The stream was used after this side had closed it."""


class Receiver(Protocol):
    """Callbacks of a stream, all synchronous, on the loop's thread."""

    def data_received(self, data: bytes | memoryview) -> None:
        """Bytes came; `data` is valid only during the call."""

    def eof_received(self) -> None:
        """The peer ended its direction cleanly; ours may go on."""

    def connection_lost(self, error: Exception | None) -> None:
        """The stream is gone, with the reason or None after our own close; the last call."""

    def resume_writing(self) -> None:
        """What waits to be sent has fallen below the low-water mark, after a `send` that answered False."""


class Gone:
    """The receiver of a stream that has been lost: nothing reaches anybody any more."""

    __slots__ = ()

    def data_received(self, data: bytes | memoryview) -> None: ...

    def eof_received(self) -> None: ...

    def connection_lost(self, error: Exception | None) -> None: ...

    def resume_writing(self) -> None: ...


GONE = Gone()


class Inbox:
    """Keeps what arrives, up to INBOX bytes and one chunk, while nobody has started the stream."""

    __slots__ = ("data", "eof", "paused", "stream", "wakeup")

    def __init__(self, stream: Stream) -> None:
        self.stream: Stream | None = stream
        self.data = b""
        self.eof = False
        self.paused = False
        self.wakeup: Wakeup | None = None

    def _wake(self) -> None:
        wakeup = self.wakeup
        if wakeup is not None:
            self.wakeup = None
            wakeup.wake()

    def data_received(self, data: bytes | memoryview) -> None:
        self.data = b"".join((self.data, data)) if self.data else bytes(data)
        if len(self.data) >= INBOX and not self.paused and self.stream is not None:
            self.paused = True
            self.stream.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.eof = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.stream = None
        self._wake()

    def resume_writing(self) -> None: ...


class _Drain(Gone):
    """Throws away what a peer still sends, so that closing does not reset what we have just told it."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def eof_received(self) -> None:
        self.stream.close()


LINGER = 1.0  # seconds: longer than a round trip, and short enough for a peer that goes on sending


def linger(stream: Stream, seconds: float = LINGER) -> None:
    """End our direction, then close when the peer has ended its own, or after `seconds`.

    Closing a socket with unread bytes sends a reset, which may destroy the refusal that was written before it.
    """
    if stream.ended:
        stream.close()
    elif not stream.lost:
        stream.loop.call_later(seconds, stream.close)
        stream.start(_Drain(stream))
        stream.send_eof()


class Stream(ABC):
    """A connection in both directions, by callbacks (`start`) or by awaiting (`read`, `write`).

    For those who implement one: hand what comes to `self._receiver`, call `_room_again()` when what waits has
    fallen to LOW_WATER after a `send` answered False, and `_finish(error)` once when the transport is gone.
    `resume_reading` must not deliver before it returns.
    """

    __slots__ = ("_closers", "_error", "_lost", "_receiver", "_writers", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.get_running_loop()
        self._receiver: Receiver = Inbox(self)
        self._writers: list[Wakeup] | None = None
        self._closers: list[Wakeup] | None = None
        self._error: Exception | None = None
        self._lost = False

    # what a transport provides

    @abstractmethod
    def send(self, data: Data) -> bool:
        """Send or queue `data` (copied if it has to wait); False: stop until `resume_writing`."""

    @abstractmethod
    def send_eof(self) -> None:
        """End our direction after what waits; the peer's goes on."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`, and let the peer feel it."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Deliver again, not before this call has returned."""

    @abstractmethod
    def close(self) -> None:
        """Flush what waits, bounded in time, then close both directions."""

    @abstractmethod
    def abort(self, error: Exception | None = None) -> None:
        """Reset at once; `error` is what readers here will be told."""

    @property
    def waiting(self) -> int:
        """How many bytes wait to be sent, as far as this stream knows."""
        return 0

    # what everyone uses

    @property
    def lost(self) -> bool:
        """Whether the stream is gone in both directions."""
        return self._lost

    @property
    def ended(self) -> bool:
        """Whether the peer is known to have ended its direction: nothing more comes that could be waited for."""
        return False

    def start(self, receiver: Receiver) -> None:
        """Send all further callbacks to `receiver`; bytes that wait here are delivered before this returns."""
        inbox = self._receiver
        if self._lost:
            self.loop.call_soon(receiver.connection_lost, self._error)
        else:
            self._receiver = receiver
        if type(inbox) is not Inbox:
            return
        if not inbox.eof and not self._lost:
            self.resume_reading()
        if inbox.data:
            data, inbox.data = inbox.data, b""
            receiver.data_received(data)
        if inbox.eof:
            receiver.eof_received()

    def recall(self, data: bytes = b"", *, ended: bool = False) -> None:
        """Take delivery back from the receiver: what comes waits here again, for `read` or another `start`.

        data, ended: what the receiver was given and has not used, and whether the peer's end was among it.
        Raises ConnectionError where the stream is lost, RuntimeError where nobody has started it.
        """
        if self._lost:
            raise self._error or ClosedError("this side has closed the connection")
        if type(self._receiver) is Inbox:
            raise RuntimeError("this stream delivers to nobody")
        inbox = self._receiver = Inbox(self)
        inbox.data, inbox.eof = data, ended
        if not ended:
            self.resume_reading()

    def unread(self, data: bytes) -> None:
        """Put `data` back in front of what is still to be read."""
        inbox = self._inbox()
        inbox.data = data + inbox.data if inbox.data else data

    async def read(self, limit: int = 65536) -> bytes:
        """The next bytes, at most `limit`; empty at the peer's clean end; raises ConnectionError."""
        inbox = self._inbox()
        while not inbox.data:
            if inbox.eof:
                return b""
            if self._error is not None:
                raise self._error
            if self._lost:
                raise ClosedError("this side has closed the connection")
            if inbox.wakeup is not None:
                raise RuntimeError("two tasks read from one stream")
            if inbox.paused or not self._reading():
                inbox.paused = False
                self.resume_reading()
            wakeup = inbox.wakeup = Wakeup(self.loop)
            try:
                await wakeup
            finally:
                inbox.wakeup = None
        data = inbox.data
        if len(data) <= limit:
            inbox.data = b""
            return data
        inbox.data = data[limit:]
        return data[:limit]

    async def read_exactly(self, n: int) -> bytes:
        """Exactly `n` bytes; raises EndOfStream when the peer ends before."""
        data = await self.read(n)
        while len(data) < n:
            more = await self.read(n - len(data))
            if not more:
                raise EndOfStream(f"the peer ended its direction after {len(data)} of {n} bytes")
            data += more
        return data

    async def write(self, data: Data) -> None:
        """Send `data`, and wait while more than the high-water mark waits before it."""
        if self._error is not None:
            raise self._error
        if self._lost:
            raise ClosedError("this side has closed the connection")
        if self.send(data):
            return
        wakeup = Wakeup(self.loop)
        if self._writers is None:
            self._writers = []
        self._writers.append(wakeup)
        await wakeup
        if self._lost:
            raise self._error or ClosedError("this side has closed the connection")

    async def wait_closed(self) -> None:
        """Return when both directions are gone and what waited was flushed or given up."""
        if not self._lost:
            if self._closers is None:
                self._closers = []
            wakeup = Wakeup(self.loop)
            self._closers.append(wakeup)
            await wakeup

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif not self.lost:
            self.close()
            await self.wait_closed()

    # for those who implement a transport

    def _inbox(self) -> Inbox:
        inbox = self._receiver
        if type(inbox) is not Inbox:
            raise RuntimeError("this stream delivers to a receiver, it cannot be read")
        return inbox

    def _reading(self) -> bool:
        """Whether the transport delivers at present; one that starts paused overrides this."""
        return True

    def _room_again(self) -> None:
        writers, self._writers = self._writers, None
        self._receiver.resume_writing()
        for wakeup in writers or ():
            wakeup.wake()

    def _finish(self, error: Exception | None) -> None:
        """The transport is gone: tell the receiver and everyone who waits, once."""
        if self._lost:
            return
        self._lost = True
        if self._error is None:
            self._error = error
        receiver = self._receiver
        if type(receiver) is not Inbox:
            self._receiver = GONE
        waiting = (self._writers or []) + (self._closers or []) if self._writers or self._closers else ()
        self._writers = self._closers = None
        receiver.connection_lost(error)
        for wakeup in waiting:
            wakeup.wake()
