"""asyncio's transport interface over a Stream, so that asyncssh runs on TCP, TLS, a tunnel's channel or memory alike.

Belongs here: moving bytes between a Stream and one asyncio protocol. Not here: anything that knows SSH.
"""

import asyncio
from typing import Any

from monoport.net.stream import Stream

FLUSH = 131_072  # bytes gathered before they are sent at once; smaller writes of one loop turn travel together
SLICE = 65_536  # asyncssh cuts packets off the front of its buffer: larger pieces cost quadratic copying


class StreamTransport(asyncio.Transport):
    """Drive one asyncio protocol by a Stream.

    Args: the stream, the protocol, and the peer's address, which the protocol may ask for as "peername".
    """

    def __init__(self, stream: Stream, protocol: asyncio.Protocol, peer: tuple[str, int]) -> None:
        super().__init__(extra={"peername": peer, "sockname": ("", 0)})
        self._stream = stream
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Any] = []
        self._size = 0
        self._full = False
        self._closing = False
        self.closed = asyncio.Event()

    def attach(self) -> None:
        """Begin: the protocol is told of its connection, then bytes flow."""
        self._protocol.connection_made(self)
        self._stream.start(self)

    # what the stream calls

    def data_received(self, data: bytes | memoryview) -> None:
        with memoryview(data) as view:
            for start in range(0, len(view), SLICE):
                if self._closing:
                    return
                self._protocol.data_received(bytes(view[start : start + SLICE]))

    def eof_received(self) -> None:
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self.closed.set()
        self._protocol.connection_lost(error)

    def resume_writing(self) -> None:
        if self._full:
            self._full = False
            self._protocol.resume_writing()

    # what the protocol calls

    def write(self, data: Any) -> None:
        if self._closing:
            return
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if not self._stream.send(data) and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._size

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Send what waits, then close."""
        if not self._closing:
            self._flush()
            self._closing = True
            self._stream.close()

    def abort(self) -> None:
        """Close; what waits is dropped where the peer has stopped reading, so that a stalled peer holds nothing."""
        if self._full:
            self._closing = True
            self._waiting.clear()
            self._stream.abort()
        else:
            self.close()

    def pause_reading(self) -> None:
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        self._stream.resume_reading()
