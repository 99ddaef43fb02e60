"""A client's stream behind MySQL's compression: what is read and sent here is plain, what travels is compressed.

Belongs here: the pump between the two. The packets' form lives in `wire/mysql/compression`.
"""

from monoport.net.stream import CHUNK, Data, Stream
from monoport.wire.mysql.compression import Deflater, Inflater
from monoport.wire.mysql.packets import ProtocolError


class CompressedStream(Stream):
    """MySQL's compression over `raw`, which it owns, towards a client.

    Nothing more is read from the client while something of it waits to be inflated, and one turn of the loop inflates
    about as much as one read of an ordinary connection brings.
    """

    __slots__ = ("_behind", "_deflater", "_due", "_eof", "_inflater", "_paused", "_raw")

    def __init__(self, raw: Stream) -> None:
        super().__init__(raw.loop)
        self._raw = raw
        self._inflater = Inflater()
        self._deflater = Deflater()
        self._paused = False
        self._behind = False  # what came is not inflated yet: `raw` is paused
        self._due = False  # `_go_on` will be called
        self._eof = False
        raw.start(self)

    # the stream underneath

    def data_received(self, data: bytes | memoryview) -> None:
        """Compressed bytes came."""
        self._inflater.add(data)
        self._deliver()

    def eof_received(self) -> None:
        """The client has sent everything."""
        self._eof = True
        self._deliver()

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone."""
        self._finish(error)

    def resume_writing(self) -> None:
        """The client takes more."""
        self._room_again()

    def _deliver(self) -> None:
        given = 0
        try:
            while not self._paused and not self.lost and given < CHUNK:
                content = self._inflater.next()
                if not content:
                    self._read_on()
                    return
                given += len(content)
                self._deflater.number = (self._inflater.number + 1) & 0xFF
                self._receiver.data_received(content)
        except ProtocolError as error:
            self.abort(ConnectionError(str(error)))
            return
        if not self.lost:
            self._behind = True
            self._raw.pause_reading()
            if not self._paused:
                self._later()

    def _read_on(self) -> None:
        """All that has come is inflated."""
        if self._eof:
            self._eof = False
            self._receiver.eof_received()
        elif self._behind:
            self._behind = False
            self._raw.resume_reading()

    def _later(self) -> None:
        if not self._due:
            self._due = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._due = False
        self._deliver()

    # what a transport provides

    def send(self, data: Data) -> bool:
        """Compress and send, or queue."""
        if not data:
            return True
        return self._raw.send(self._deflater.add(memoryview(data)))

    def send_eof(self) -> None:
        """End our direction."""
        self._raw.send_eof()

    def pause_reading(self) -> None:
        """Deliver nothing, and let the client feel it."""
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again: first what has come already."""
        if self._paused:
            self._paused = False
            self._behind = True
            self._later()

    def close(self) -> None:
        """Flush, then close."""
        self._raw.close()

    def abort(self, error: Exception | None = None) -> None:
        """Reset at once."""
        self._raw.abort(error)
