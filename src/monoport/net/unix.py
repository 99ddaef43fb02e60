"""Serving on a Unix socket that one user alone can open.

Belongs here: the socket file and the accept loop, for callers on this machine. Does not belong here: TCP and strangers
(listener), who the caller is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog

from monoport.errors import Failure
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream

BACKLOG = 128  # the callers are on this machine
CONNECTIONS = 512  # at once; more wait in the backlog
REST = 1.0  # seconds without accepting after the process ran out of descriptors

_log = structlog.get_logger()


def listen(path: Path) -> socket.socket:
    """A Unix socket with mode 0600; one left behind by a killed process is replaced. Raises Failure."""
    _remove(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Failure(f"{path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return listening


async def serve_unix(
    path: Path, serve: Callable[[Stream], Awaitable[None]], ready: asyncio.Event | None = None
) -> None:
    """Serve connections on a socket file until cancelled, each in a task of its own.

    Args: the path, what serves one connection to its end, and what to set once connections are taken.
    Raises Failure: the socket cannot be made.
    """
    listening = listen(path)
    slots = asyncio.Semaphore(CONNECTIONS)
    try:
        async with asyncio.TaskGroup() as group:
            if ready is not None:
                ready.set()
            while True:
                await slots.acquire()
                stream = await _accept(listening)
                group.create_task(_one(serve, stream)).add_done_callback(lambda _task: slots.release())
    finally:
        listening.close()
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


async def _one(serve: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
    try:
        await serve(stream)
    except (ConnectionError, TimeoutError) as error:
        _log.info("local connection ended", reason=str(error) or type(error).__name__)
    except Exception:  # noqa: BLE001 # one caller's fault must not end the others; it is logged
        _log.exception("local connection broke")
    finally:
        stream.abort()


async def _accept(listening: socket.socket) -> Stream:
    """The next connection; out of descriptors, wait until there are some again."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(listening)
        except OSError as error:
            _log.error("a local socket cannot accept", error=error.strerror)
            await asyncio.sleep(REST)
            continue
        return SocketStream(accepted)
