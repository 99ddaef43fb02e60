"""Bytes both ways between two streams until both have ended, or until one of them has.

Belongs here: `relay`, its idle limit, `relay_until_end`. Does not belong here: looking at the bytes.

No task, future or buffer stands on the way of bytes: what one stream receives is sent on inside the same call.
"""

from __future__ import annotations

import asyncio

from monoport.net.deadlines import Deadlines
from monoport.net.meter import Meter
from monoport.net.reactor import Reactor
from monoport.net.sockets import SocketStream
from monoport.net.splice import Splice, splice
from monoport.net.stream import Stream
from monoport.net.wakeup import Wakeup


class _Half:
    """The receiver of one stream: everything goes on to the other one."""

    __slots__ = ("_done", "_inward", "_meter", "ended", "failed", "other", "paused", "sink", "source")

    other: _Half

    def __init__(self, source: Stream, sink: Stream, meter: Meter, inward: bool, done: Wakeup) -> None:
        self.source = source
        self.sink = sink
        self._done = done
        self.ended = False
        self.failed: Exception | None = None
        self.paused = False
        self._meter = meter
        self._inward = inward

    def data_received(self, data: bytes | memoryview) -> None:
        if self._inward:
            self._meter.bytes_in += len(data)
        else:
            self._meter.bytes_out += len(data)
        if not self.sink.send(data):
            self.paused = True
            self.source.pause_reading()

    def eof_received(self) -> None:
        self.ended = True
        self.sink.send_eof()
        if self.other.ended:
            self._done.wake()

    def resume_writing(self) -> None:
        other = self.other
        if other.paused:
            other.paused = False
            other.source.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not (self.ended and self.other.ended):  # behind both ends, nothing is lost by it
            self.failed = error
            if self._inward and self.other.failed is None:
                self._meter.client_broke = True
            self.sink.abort(error)
        elif not self.sink.lost:
            self.sink.close()
        del self.other  # no call follows this one: two halves that know each other would wait for the collector
        self._done.wake()


async def relay(a: Stream, b: Stream, *, idle: float | None = None, meter: Meter | None = None) -> None:
    """Carry bytes both ways until both ends have ended, then return; the callers close what they opened.

    A half-close is passed on as one, a reset (or a TLS end without close_notify) as a reset, unless it comes behind the
    ends of both: what waits then is flushed, as if it had not come. `idle`: seconds
    without a byte in either direction after which both are closed. `meter` counts, and says why it ended.
    Network errors end the relay and are told to the meter; any other error of a stream is raised.
    """
    meter = meter or Meter()
    done = Wakeup(a.loop)
    here, there = _Half(a, b, meter, True, done), _Half(b, a, meter, False, done)
    here.other, there.other = there, here
    watch = _Watch(_line(a.loop, idle), meter, a, b) if idle else None
    splices: tuple[Splice, ...] = ()
    try:
        b.start(there)
        a.start(here)
        if type(a) is SocketStream and type(b) is SocketStream:
            splices = splice(a, b, meter)
        if not done.done():
            await done
    except BaseException:
        a.abort()
        b.abort()
        raise
    finally:
        if watch is not None:
            watch.line.done(watch)
        for direction in splices:
            direction.stop()
    error = here.failed or there.failed
    if error is not None:
        if not isinstance(error, OSError):
            raise error
        meter.ended = meter.ended or str(error) or type(error).__name__


class _Last(_Half):
    """The receiver of a stream whose end is not passed on: the relay stops there."""

    __slots__ = ()

    def eof_received(self) -> None:
        self.ended = True
        self._done.wake()


class _First(_Half):
    """The receiver of a stream whose end is kept, once it has said anything: the other side may want more before it."""

    __slots__ = ()

    def eof_received(self) -> None:
        if self._meter.bytes_in:
            self.ended = True
        else:
            super().eof_received()


async def relay_until_end(a: Stream, b: Stream, *, meter: Meter, closing: bytes = b"") -> bool:
    """Carry bytes both ways until `b` ends its direction, and tell nobody: both can be read or started again then.

    An end of `a` is not passed on either, unless it has said nothing before. closing: what `b` gets in the end, behind
    all that has come from `a`.
    False: one of the two was lost before, and with it the other; why goes to the meter.
    """
    done = Wakeup(a.loop)
    here, there = _First(a, b, meter, True, done), _Last(b, a, meter, False, done)
    here.other, there.other = there, here
    try:
        b.start(there)
        a.start(here)
        if not done.done():
            await done
    except BaseException:
        a.abort()
        b.abort()
        raise
    if there.ended and not a.lost and not b.lost:
        b.send(closing)
        a.recall(ended=here.ended)
        b.recall(ended=True)
        del here.other, there.other
        return True
    a.close()
    b.close()
    error = here.failed or there.failed
    if error is not None:
        meter.ended = meter.ended or str(error) or type(error).__name__
    return False


class _Watch:
    """Two ends and their meter, looked at whenever `idle` seconds have passed: no timer is touched per byte."""

    __slots__ = ("ends", "line", "meter", "seen")

    def __init__(self, line: Deadlines[_Watch], meter: Meter, *ends: Stream) -> None:
        self.line = line
        self.meter = meter
        self.ends = ends
        self.seen = meter.bytes_in + meter.bytes_out
        line.begin(self, ends[0].loop.time())


def _look(watch: _Watch) -> None:
    seen = watch.meter.bytes_in + watch.meter.bytes_out
    if seen == watch.seen:
        watch.meter.ended = f"idle for {watch.line.seconds:g} s"
        for end in watch.ends:
            end.close()
    else:
        watch.seen = seen
        watch.line.begin(watch, watch.ends[0].loop.time())


def _line(loop: asyncio.AbstractEventLoop, idle: float) -> Deadlines[_Watch]:
    lines = Reactor.of(loop).idle_lines
    line = lines.get(idle)
    if line is None:
        line = lines[idle] = Deadlines(loop, idle, _look)
    return line
