"""A connection that was accepted, until its handler has it.

Belongs here: `Arrival`, its deadlines, and `Limits`, what strangers may take. Does not belong here: accepting, which is
`listener`.
"""

from __future__ import annotations

from dataclasses import dataclass

from monoport.net.deadlines import Deadlines
from monoport.net.sockets import SocketStream
from monoport.net.stream import EndOfStream, Stream

Source = tuple[str, int]  # address and port


class LateError(TimeoutError):
    """The peer let a deadline of the listener pass."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may take.

    connections: slots in all. per_source: slots of one address (of one /64 in IPv6); None means the listener's
    PER_SOURCE, and loopback exempt. first_bytes: seconds from accept until the connection is routed. handshake: seconds
    from accept until TLS is done.
    """

    connections: int = 8192
    per_source: int | None = None
    first_bytes: float = 5.0
    handshake: float = 10.0


class Arrival:
    """A connection that was accepted and has a slot.

    id: short, unique in this process and, with its random part, in practice everywhere. source: address and port, the
    client's own where a balancer has told them. share: the key that the source is counted under, "" where no limit
    holds. first: the bytes received so far. accepted: the loop's clock, seconds.
    """

    __slots__ = ("_handshake", "_hello", "accepted", "first", "id", "share", "source", "stream")

    def __init__(
        self, name: str, stream: SocketStream, source: Source, hello: Deadlines[Arrival], handshake: Deadlines[Arrival]
    ) -> None:
        self.id = name
        self.stream: Stream = stream
        self.source = source
        self.share = ""
        self.first = b""
        self.accepted = stream.loop.time()
        self._hello = hello
        self._handshake = handshake
        hello.begin(self, self.accepted)
        handshake.begin(self, self.accepted)

    async def more(self) -> bytes:
        """Wait for further bytes and return all of `first`; raises LateError, EndOfStream, ConnectionError."""
        data = await self.stream.read()
        if not data:
            raise EndOfStream(f"the client ended its direction after {len(self.first)} bytes")
        self.first = self.first + data if self.first else data
        return self.first

    def routed(self) -> None:
        """The first bytes have said where to: their deadline is over."""
        self._hello.done(self)

    def settled(self) -> None:
        """TLS is done, or there is none: no deadline is left."""
        self._handshake.done(self)

    def late(self, what: str, seconds: float) -> None:
        """A deadline has passed: whoever waits for the stream is told."""
        self.stream.abort(LateError(f"no {what} within {seconds:g} s of connecting"))
