"""Streams over TCP and Unix sockets, and dialling.

Belongs here: `SocketStream`, `connect`, `connect_unix`. Does not belong here: accepting (`listener`), TLS (`tls`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from functools import lru_cache

from monoport.errors import Failure
from monoport.net.reactor import READ, WRITE, Reactor
from monoport.net.stream import CHUNK, HIGH_WATER, INBOX, LOW_WATER, ClosedError, Data, Stream
from monoport.net.wakeup import Wakeup

RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST, socket(7)
FLUSH = 10.0  # seconds that a closed stream may go on sending what waits; a peer that never reads holds no more
BROKEN = select.EPOLLERR | select.EPOLLHUP
# Peers that vanished without a word are noticed after two minutes, however long nobody had anything to say.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class ConnectError(Failure, ConnectionError):
    """A TCP or Unix address could not be reached; the text names it and why."""


class SocketStream(Stream):
    """A stream over a connected stream socket, which it owns from now on."""

    __slots__ = ("_fd", "_mask", "_out", "_reactor", "_read_size", "_sock", "_state", "on_readable", "on_writable")

    # bits of _state
    _EOF_WANTED, _EOF_SENT, _CLOSING, _FULL, _PEER_ENDED = 1, 2, 4, 8, 16

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop | None = None, *, inherited: bool = False
    ) -> None:
        """`inherited`: an accepted socket, which has its TCP options from the listening one."""
        super().__init__(loop)
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        if not inherited:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:  # a Unix socket: it has no delay
                    raise
        self._sock = sock
        self._fd = sock.fileno()
        self._reactor = Reactor.of(self.loop)
        self._mask = 0  # what epoll waits for; the descriptor is in the set only while this is not zero, or paused
        self._out: bytearray | None = None
        self._state = 0
        self._read_size = INBOX
        # The splicing relay takes these two over; everyone else is served by receive and _flush.
        self.on_readable: Callable[[int], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for addresses and options."""
        return self._sock

    @property
    def waiting(self) -> int:
        return len(self._out) if self._out is not None else 0

    def want_writing(self, wanted: bool) -> None:
        """Have `on_writable` called, or not."""
        self.wait_for(self._mask | WRITE if wanted else self._mask & ~WRITE)

    # readiness

    def _ready(self, mask: int) -> None:
        if mask & ~WRITE:
            if self.on_readable is not None:
                self.on_readable(mask)
            else:
                self.receive(mask)
        if mask & WRITE and self._fd >= 0:
            if self.on_writable is not None:
                self.on_writable()
            else:
                self._flush()

    def receive(self, mask: int) -> None:
        """Read once and deliver; the default for `on_readable`."""
        buffer = self._reactor.buffer
        try:
            n = self._sock.recv_into(buffer, self._read_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(error)
            return
        if n:
            self._receiver.data_received(buffer[:n])
        else:
            self.peer_ended(mask)

    @property
    def local(self) -> str:
        """Our end's address as host:port, "" where it has none (a Unix socket, a lost connection)."""
        try:
            found = self._sock.getsockname()
        except OSError:
            return ""
        if not isinstance(found, tuple):
            return ""
        return f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"

    def peer_ended(self, mask: int = 0) -> None:
        """The peer's FIN was read: wait for reading no more, and say so."""
        self._state |= self._PEER_ENDED
        self.wait_for(self._mask & WRITE)
        hung_up = mask & BROKEN and self._sock.family == socket.AF_UNIX and not self._state & self._EOF_SENT
        self._receiver.eof_received()
        if hung_up and self._fd >= 0:  # a Unix peer that hangs up has closed both directions: nothing can be sent
            self._shut()
            self._finish(None)

    def wait_for(self, mask: int) -> None:
        """Have epoll wait for exactly these events."""
        if self._fd < 0 or mask == self._mask:
            return
        if self._mask == 0:
            self._reactor.register(self._fd, mask, self._ready)
        elif mask == 0:
            # Out of the set altogether: a level-triggered hang-up would otherwise be reported for ever.
            self._reactor.unregister(self._fd)
        else:
            self._reactor.modify(self._fd, mask)
        self._mask = mask

    def pause_reading(self) -> None:
        self.wait_for(self._mask & WRITE)

    def resume_reading(self) -> None:
        if not self._state & (self._PEER_ENDED | self._CLOSING):
            self.wait_for(self._mask | READ)

    def _reading(self) -> bool:
        return bool(self._mask & READ)

    def start(self, receiver: object) -> None:
        self._read_size = CHUNK
        super().start(receiver)  # type: ignore[arg-type]

    # sending

    def send(self, data: Data) -> bool:
        if self._fd < 0 or self._state & (self._EOF_WANTED | self._EOF_SENT | self._CLOSING):
            return True
        out = self._out
        if out is None:
            try:
                n = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                n = 0
            except OSError as error:
                self._error = error
                self.loop.call_soon(self.fail, error)
                return True
            if n == len(data):
                return True
            out = self._out = bytearray(memoryview(data)[n:])
            self.wait_for(self._mask | WRITE)
        else:
            out += data
        if len(out) <= HIGH_WATER:
            return True
        self._state |= self._FULL
        return False

    def _flush(self) -> None:
        out = self._out
        if out is None:
            self.wait_for(self._mask & ~WRITE)
            return
        try:
            n = self._sock.send(out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(error)
            return
        if n < len(out):
            del out[:n]
        else:
            self._out = None
            self.wait_for(self._mask & ~WRITE)
            if self._state & self._EOF_WANTED:
                self.send_eof()
            if self._state & self._CLOSING:
                self._shut()
                self._finish(None)
                return
        if self._state & self._FULL and (self._out is None or len(self._out) <= LOW_WATER):
            self._state &= ~self._FULL
            self._room_again()

    def send_eof(self) -> None:
        if self._fd < 0 or self._state & self._EOF_SENT:
            return
        self._state |= self._EOF_WANTED
        if self._out is None:
            self._state |= self._EOF_SENT
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # the peer has reset the connection meanwhile
                self.loop.call_soon(self.fail, error)

    # ending

    def close(self) -> None:
        if self._fd < 0 or self._state & self._CLOSING:
            return
        if self._out is None:
            self._shut()
            self._finish(None)
            return
        self._state |= self._CLOSING
        self.wait_for(WRITE)
        self.loop.call_later(FLUSH, self.abort, TimeoutError(f"the peer took nothing for {FLUSH:g} s after close"))

    def abort(self, error: Exception | None = None) -> None:
        if self._fd < 0:
            return
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError as failed:  # a Unix socket, or one that is already gone: there is nobody to reset
            if failed.errno not in (errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTCONN):
                raise
        self._shut()
        self._finish(error or ClosedError("the connection was aborted on this side"))

    def fail(self, error: Exception) -> None:
        """The socket is broken: close it and tell everyone.

        Without the traceback: its frames would hold this stream in a circle that only the collector could undo.
        """
        if self._fd >= 0:
            self._shut()
            self._finish(error.with_traceback(None))

    def _shut(self) -> None:
        if self._mask:
            self._mask = 0
            self._reactor.forget(self._fd)
        self._fd = -1
        self._out = None
        self._sock.close()


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask a TCP peer that is silent whether it is still there; nothing on a Unix socket, tcp(7)."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def connect(host: str, port: int, timeout: float = 10.0) -> SocketStream:
    """Dial `host`:`port` within `timeout` seconds, every address of the name in turn; raises ConnectError."""
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    try:
        family = _family(host)
        if family is not None:
            sock, established = _begin(family, (host, port))
            if established:
                return SocketStream(sock, loop)
            async with asyncio.timeout(timeout):
                return await _established(loop, sock)
        async with asyncio.timeout(timeout):
            for kind, _, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                try:
                    return await _dial(loop, kind, address)
                except OSError as error:
                    last = error
    except TimeoutError as error:
        raise ConnectError(f"{host}:{port} did not answer within {timeout:g} s") from last or error
    except socket.gaierror as error:
        raise ConnectError(f"{host}:{port}: {error.strerror}") from error
    except OSError as error:
        last = error
    raise ConnectError(f"{host}:{port}: {_reason(last)}") from last


async def connect_unix(path: str | os.PathLike[str], timeout: float = 10.0) -> SocketStream:
    """Dial the Unix socket at `path` within `timeout` seconds; raises ConnectError."""
    try:
        async with asyncio.timeout(timeout):
            return await _dial(asyncio.get_running_loop(), socket.AF_UNIX, os.fspath(path))
    except TimeoutError as error:
        raise ConnectError(f"{path} did not answer within {timeout:g} s") from error
    except OSError as error:
        raise ConnectError(f"{path}: {_reason(error)}") from error


@lru_cache(maxsize=256)  # what configurations name
def _family(host: str) -> int | None:
    """The address family of an address; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None


def _begin(family: int, address: object) -> tuple[socket.socket, bool]:
    """Start connecting; True: it is done already. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if not _here(address):
            keep_alive(sock)
        code = sock.connect_ex(address)  # type: ignore[arg-type]
        if code == errno.EINPROGRESS:
            # A loopback peer's answer is processed as the first call returns: asking again saves a turn of the loop.
            code = sock.connect_ex(address)  # type: ignore[arg-type]
            if code in (errno.EALREADY, errno.EINPROGRESS):
                return sock, False
        if code not in (0, errno.EISCONN):
            raise OSError(code, "its queue of connections is full" if code == errno.EAGAIN else os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock, True


def _here(address: object) -> bool:
    """Whether the peer is on this machine: it cannot vanish without a word, and four calls a dial are saved."""
    return not isinstance(address, tuple) or address[0].startswith("127.") or address[0] == "::1"


async def _dial(loop: asyncio.AbstractEventLoop, family: int, address: object) -> SocketStream:
    sock, established = _begin(family, address)
    return SocketStream(sock, loop) if established else await _established(loop, sock)


async def _established(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> SocketStream:
    try:
        await _connected(loop, sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock, loop)


async def _connected(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    wakeup = Wakeup(loop)
    reactor = Reactor.of(loop)
    fd = sock.fileno()

    def ready(_: int) -> None:
        reactor.unregister(fd)
        wakeup.wake()

    reactor.register(fd, WRITE, ready)
    try:
        await wakeup
    finally:
        reactor.unregister(fd)


def _reason(error: OSError | None) -> str:
    if error is None:
        return "the name has no address"
    return error.strerror or str(error)
