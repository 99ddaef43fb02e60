"""Standard input and output as one Stream, for commands that another program talks to through pipes.

Belongs here: moving bytes of two file descriptors without blocking. Does not belong here: what the bytes mean.
"""

import asyncio
import os
import stat

from monoport.errors import Failure
from monoport.net.stream import CHUNK, HIGH_WATER, LOW_WATER, ClosedError, Data, Stream

FLUSH = 10.0  # seconds that what waits may take after close; a program that stopped reading has lost interest


class StdioStream(Stream):
    """Reads from one descriptor and writes to another; they may be pipes, sockets or terminals.

    Args:
        read_fd: where the peer's bytes come from.
        write_fd: where ours go.

    Raises:
        Failure: one of them is a regular file, for which nobody can wait.
    """

    __slots__ = ("_eof_sent", "_flushing", "_paused", "_read_fd", "_waiting", "_write_fd", "_write_is_pipe")

    def __init__(self, read_fd: int = 0, write_fd: int = 1, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop)
        self._read_fd, self._write_fd = read_fd, write_fd
        self._waiting = bytearray()
        self._paused = self._flushing = self._eof_sent = False
        self._write_is_pipe = stat.S_ISFIFO(os.fstat(write_fd).st_mode)
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        try:
            self.loop.add_reader(read_fd, self._readable)
            if self._write_is_pipe:
                # epoll reports a pipe whose reader has left as readable at its writing end
                self.loop.add_reader(write_fd, self._reader_left)
        except PermissionError:
            self._blocking_again()
            raise Failure("standard input and output must be pipes, sockets or a terminal, not files") from None

    def pause_reading(self) -> None:
        if not self._paused and self._read_fd >= 0:
            self._paused = True
            self.loop.remove_reader(self._read_fd)

    def resume_reading(self) -> None:
        if self._paused and self._read_fd >= 0 and not self._lost:
            self._paused = False
            self.loop.add_reader(self._read_fd, self._readable)

    def _reading(self) -> bool:
        return not self._paused

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(error)
            return
        if data:
            self._receiver.data_received(data)
            return
        self.loop.remove_reader(self._read_fd)
        self._read_fd = -1
        self._receiver.eof_received()
        self._end_if_done()

    def _reader_left(self) -> None:
        self.abort(BrokenPipeError("nobody reads standard output any more"))

    def send(self, data: Data) -> bool:
        if self._lost or self._eof_sent:
            return True
        if not self._waiting:
            written = self._write(data)
            if written == len(data):
                return True
            self._waiting += memoryview(data)[written:]
            if not self._lost:
                self.loop.add_writer(self._write_fd, self._writable)
        else:
            self._waiting += data
        self._flushing = self._flushing or len(self._waiting) >= HIGH_WATER
        return not self._flushing

    def _write(self, data: Data) -> int:
        try:
            return os.write(self._write_fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.abort(error)
            return len(data)

    def _writable(self) -> None:
        del self._waiting[: self._write(self._waiting)]
        if self._lost:
            return
        if not self._waiting:
            self.loop.remove_writer(self._write_fd)
            if self._eof_sent:
                self._close_writing()
        if self._flushing and len(self._waiting) <= LOW_WATER:
            self._flushing = False
            self._room_again()

    def send_eof(self) -> None:
        if not self._eof_sent and not self._lost:
            self._eof_sent = True
            if not self._waiting:
                self._close_writing()

    def _close_writing(self) -> None:
        """The peer sees the end; the descriptor's number stays taken, so that nothing else is opened under it."""
        if self._write_is_pipe:
            self.loop.remove_reader(self._write_fd)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self._write_fd)
        os.close(null)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._eof_sent and not self._waiting and self._read_fd < 0:
            self._end(None)

    def close(self) -> None:
        if self._read_fd >= 0:
            self.loop.remove_reader(self._read_fd)
            self._read_fd = -1
        self.send_eof()
        self._end_if_done()
        if not self._lost:
            self.loop.call_later(FLUSH, self.abort, TimeoutError(f"nobody read standard output for {FLUSH:g} s"))

    def abort(self, error: Exception | None = None) -> None:
        if not self._lost:
            self._end(error or ClosedError("standard input and output were given up on this side"))

    def _end(self, error: Exception | None) -> None:
        for descriptor in (self._read_fd, self._write_fd):
            if descriptor >= 0:
                self.loop.remove_reader(descriptor)
        self.loop.remove_writer(self._write_fd)
        self._waiting.clear()
        self._blocking_again()
        self._finish(error)

    def _blocking_again(self) -> None:
        """A terminal's description is shared with the shell that started us, which does not expect it otherwise."""
        for descriptor in (self._read_fd, self._write_fd):
            if descriptor >= 0:
                os.set_blocking(descriptor, True)
