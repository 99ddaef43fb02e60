"""A socket for libraries that want one.

Belongs here: `as_socket`. Does not belong here: the libraries.
"""

from __future__ import annotations

import asyncio
import socket

from monoport.net.relay import relay
from monoport.net.sockets import SocketStream
from monoport.net.stream import Stream


def as_socket(stream: Stream, group: asyncio.TaskGroup) -> socket.socket:
    """One end of a socket pair whose other end the relay joins to `stream`, in a task of `group`.

    The socket is non-blocking and belongs to the caller; the stream belongs to the relay from now on, and is
    closed when the library has closed its end, or the peer both directions.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    try:
        inner = SocketStream(ours, stream.loop)
        group.create_task(_join(stream, inner), name="hand-off")
    except BaseException:
        ours.close()
        theirs.close()
        raise
    return theirs


async def _join(stream: Stream, inner: Stream) -> None:
    async with stream, inner:
        await relay(stream, inner)
