"""Bytes from socket to socket inside the kernel.

Belongs here: one direction of a relay between two plain sockets, by splice(2). Does not belong here: when a relay
begins and ends (`relay`), streams that must be looked into (TLS).

The bytes go through a pipe and are never copied to this process. A pipe is borrowed from a small pool for the length
of one call; only when the receiving socket is full does a direction keep its pipe, with what is left in it. A pipe
that is not empty is never given back: what is in it belongs to one connection.
"""

from __future__ import annotations

import fcntl
import os
import socket

from monoport.net.meter import Meter
from monoport.net.sockets import SocketStream
from monoport.net.stream import LIMIT

POOL = 16  # empty pipes kept: one is in use at a time, the rest replace those that full sockets hold
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_Pipe = tuple[int, int]  # reading end, writing end
_pool: list[_Pipe] = []


def _borrow() -> _Pipe:
    if _pool:
        return _pool.pop()
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, LIMIT)
    except PermissionError:  # the user's share of pipe memory is used up: a smaller pipe is only slower
        pass
    return reading, writing


def _give_back(pipe: _Pipe) -> None:
    if len(_pool) < POOL:
        _pool.append(pipe)
    else:
        _discard(pipe)


def _discard(pipe: _Pipe) -> None:
    for end in pipe:
        os.close(end)


class Splice:
    """One direction, from `source` to `sink`; takes over the one's reading and the other's writing."""

    __slots__ = ("_inward", "_left", "_meter", "_pipe", "_sink", "_source")

    def __init__(self, source: SocketStream, sink: SocketStream, meter: Meter, inward: bool) -> None:
        self._source = source
        self._sink = sink
        self._meter = meter
        self._inward = inward
        self._pipe: _Pipe | None = None  # while it holds bytes
        self._left = 0
        source.on_readable = self.readable
        sink.on_writable = self.writable

    def readable(self, mask: int) -> None:
        """Move what has come, as much as a pipe holds."""
        source = self._source
        if self._pipe is not None:  # the sink is full and the source paused: only an error is news, bytes must wait
            code = source.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                source.fail(OSError(code, os.strerror(code)))
            return
        try:
            pipe = _borrow()
        except OSError:  # out of descriptors: copying needs none
            source.on_readable = None
            source.receive(mask)
            return
        try:
            moved = os.splice(source.socket.fileno(), pipe[1], LIMIT, flags=FLAGS)
        except (BlockingIOError, InterruptedError):
            _give_back(pipe)
            return
        except OSError as error:
            _give_back(pipe)
            source.fail(error)
            return
        if not moved:
            _give_back(pipe)
            source.peer_ended(mask)
            return
        if self._inward:
            self._meter.bytes_in += moved
        else:
            self._meter.bytes_out += moved
        self._pipe, self._left = pipe, moved
        self._push()
        if self._pipe is not None:
            source.pause_reading()
            self._sink.want_writing(True)

    def writable(self) -> None:
        """The sink has room again."""
        if self._pipe is not None:
            self._push()
        if self._pipe is None:
            self._sink.want_writing(False)
            self._source.resume_reading()

    def _push(self) -> None:
        pipe = self._pipe
        if pipe is None:
            return
        try:
            while self._left:
                self._left -= os.splice(pipe[0], self._sink.socket.fileno(), self._left, flags=FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.stop()
            self._sink.fail(error)
            return
        self._pipe = None
        _give_back(pipe)

    def stop(self) -> None:
        """Drop what the sink has not taken; the connection is over."""
        pipe, self._pipe, self._left = self._pipe, None, 0
        if pipe is not None:
            _discard(pipe)
        self._source.on_readable = None
        self._sink.on_writable = None


def splice(a: SocketStream, b: SocketStream, meter: Meter) -> tuple[Splice, ...]:
    """Splice both ways between two started streams; not at all where bytes wait that were copied."""
    if a.waiting or b.waiting or a.lost or b.lost:
        return ()
    return Splice(a, b, meter, True), Splice(b, a, meter, False)
