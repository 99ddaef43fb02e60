"""A Stream over one asyncssh channel: flow control both ways, each direction ends by itself, a cut is not an end.

Belongs here: the translation between a channel's callbacks and `net.stream`. Not here: who may open one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncssh
from asyncssh.channel import SSHForwardChannel
from asyncssh.constants import MSG_CHANNEL_EOF

from monoport.net.meter import Meter
from monoport.net.relay import relay
from monoport.net.stream import HIGH_WATER, LOW_WATER, Data, Stream
from monoport.tunnel.link import ClientLink, ServerLink
from monoport.tunnel.packets import quick

OPEN_TIMEOUT = 15.0  # seconds: a peer that asked for a channel takes the confirmation at once
CLOSE_TIMEOUT = 10.0  # seconds that a peer may take to read what waits when we close; then the channel is cut


def _note_eof(channel: Any, pkttype: int, pktid: int, packet: Any) -> None:
    """Remember that the peer ended its direction: asyncssh forgets an EOF that a close follows in a paused channel."""
    if isinstance(session := channel._session, ChannelSession):
        session.stream._eof_seen = True
    channel._process_eof(pkttype, pktid, packet)


_HANDLERS = {**asyncssh.SSHTCPChannel._packet_handlers, MSG_CHANNEL_EOF: _note_eof}


class ChannelSession(asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """What asyncssh calls for one channel; its `stream` is the other face of it."""

    def __init__(self) -> None:
        self.stream = ChannelStream(self)
        self.channel: SSHForwardChannel[bytes] | None = None
        self.opened = asyncio.Event()
        self._gone: Callable[[], object] | None = None

    def when_gone(self, callback: Callable[[], object]) -> None:
        """Call `callback` once, when the channel is gone or was never opened."""
        self._gone = callback

    def never_opened(self) -> None:
        """The peer did not open the channel."""
        self.connection_lost(ConnectionRefusedError("the channel was not opened"))

    def connection_made(self, chan: Any) -> None:
        chan.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        chan._packet_handlers = _HANDLERS
        quick(chan)
        self.channel = chan
        self.opened.set()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.stream._arrived(data)

    def eof_received(self) -> bool:
        self.stream._ended()
        return True  # our direction stays open

    def pause_writing(self) -> None:
        self.stream._full = True

    def resume_writing(self) -> None:
        self.stream._drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self.opened.set()
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()
        self.stream._gone(exc)


class ChannelStream(Stream):
    """One SSH channel as a Stream; at most 256 KiB wait in each direction.

    Args: the session that asyncssh calls. Usable once `session.opened` is set.
    """

    __slots__ = (
        "_closing",
        "_ending",
        "_eof",
        "_eof_seen",
        "_flushing",
        "_full",
        "_held",
        "_paused",
        "_timer",
        "session",
    )

    def __init__(self, session: ChannelSession) -> None:
        super().__init__()
        self.session = session
        self._full = False  # the channel's own buffer is above the high-water mark
        self._paused = False
        self._held: list[bytes] = []  # came while paused: asyncssh delivers once more after it has opened a channel
        self._eof = False  # the peer's EOF has come through asyncssh
        self._eof_seen = False  # it has come in
        self._ending = False  # the channel is gone, its last bytes are still held
        self._closing = False
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None

    # from asyncssh

    def _arrived(self, data: bytes) -> None:
        if self._paused:
            self._held.append(data)
            self._channel().pause_reading()
        else:
            self._receiver.data_received(data)

    def _ended(self) -> None:
        self._eof = True
        if not self._held:
            self._receiver.eof_received()

    def _drained(self) -> None:
        self._full = False
        if self._flushing:
            self._flushing = False
            self.loop.call_soon(self._close_channel)  # asyncssh sends the EOF after this callback
        elif not self._closing:
            self._room()

    def _room(self) -> None:
        if self._full or self._closing or self._lost:
            return
        link = self._link()
        if link is not None and link.blocked:
            link.when_writable(self._room)
        else:
            self._room_again()

    def _gone(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._closing:
            self._finish(None)
        elif exc is None and self._eof_seen and not self._channel()._recv_buf:  # else the connection went before them
            self._ending = True
            self._end()
        else:
            self._finish(ConnectionResetError(str(exc) if exc else "the channel was cut"))

    def _end(self) -> None:
        """The peer closed the channel after its EOF: what is held comes first, then the EOF, then the end."""
        if self._held:
            return
        if not self._eof:
            self._eof = True
            self._receiver.eof_received()
        self._finish(None)

    # Stream

    def send(self, data: Data) -> bool:
        channel = self._channel()
        if self._closing or self._lost or channel.is_closing():
            return True
        channel.write(data)  # any buffer will do: asyncssh copies it
        if self._full:
            return False
        link = self._link()
        if link is not None and link.blocked:
            link.when_writable(self._room)
            return False
        return True

    def send_eof(self) -> None:
        if not self._closing and not self._lost:
            self._channel().write_eof()

    def pause_reading(self) -> None:
        self._paused = True
        if self.session.channel is not None:
            self.session.channel.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self.loop.call_soon(self._deliver)

    def _reading(self) -> bool:
        return not self._paused

    def _deliver(self) -> None:
        while self._held and not self._paused and not self._closing:
            self._receiver.data_received(self._held.pop(0))
            if not self._held and self._eof:
                self._receiver.eof_received()
        if self._ending and not self._lost:
            self._end()
        if not self._paused and not self._lost and self.session.channel is not None:
            self.session.channel.resume_reading()

    def close(self) -> None:
        if self._closing or self._lost:
            return
        channel = self._channel()
        self._closing = True
        self._timer = self.loop.call_later(CLOSE_TIMEOUT, self.abort)
        channel.write_eof()
        if channel.get_write_buffer_size():
            self._flushing = True
            channel.set_write_buffer_limits(0, 0)
        else:
            channel.close()

    def _close_channel(self) -> None:
        if self.session.channel is not None and not self._lost:
            self.session.channel.close()

    def abort(self, error: Exception | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._closing = True
        if self.session.channel is not None and not self._lost:
            self.session.channel.abort()
        self._finish(error)

    def _channel(self) -> SSHForwardChannel[bytes]:
        if self.session.channel is None:
            raise RuntimeError("the channel is not open yet")
        return self.session.channel

    def _link(self) -> ClientLink | ServerLink | None:
        link = self._channel().get_extra_info("connection")
        return link if isinstance(link, ClientLink | ServerLink) else None


async def join(session: ChannelSession, near: Stream, meter: Meter | None = None) -> None:
    """Relay between a channel that the peer is opening and a stream until both have ended; both are closed then."""
    async with near:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await session.opened.wait()
        except TimeoutError:
            near.abort()
            return
        async with session.stream as far:
            await relay(far, near, meter=meter)
