"""Ports of this machine: sockets that are bound, and then listen.

Belongs here: `bind`, `listen` and what their failures are called. Does not belong here: accepting (`listener`).
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from monoport.errors import Failure
from monoport.net.sockets import keep_alive

BACKLOG = 4096  # connections the kernel keeps while we are busy; somaxconn caps it


class ListenError(Failure):
    """An address cannot be listened on; the text names it and why."""


def bind(host: str, port: int) -> list[socket.socket]:
    """Bound sockets for every address of `host` ("" for all); port 0 picks one for all; raises ListenError.

    They do not listen yet: `Listener.run` does that, so that a port opens only when there is somebody to serve it.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ListenError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in found:
            chosen = sockets[0].getsockname()[1] if sockets and not port else port
            sockets.append(_bound(family, (address[0], chosen, *address[2:])))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # SO_REUSEADDR for restarts; never SO_REUSEPORT, with which two daemons would silently share a port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)  # inherited by every accepted socket
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _not(address, error) from error
    return sock


def listen(sock: socket.socket) -> None:
    """Let a bound socket accept; raises ListenError."""
    sock.setblocking(False)
    try:
        sock.listen(BACKLOG)
    except OSError as error:  # another process bound the same port and was quicker to listen
        raise _not(sock.getsockname(), error) from error


def _not(address: tuple[Any, ...], error: OSError) -> ListenError:
    return ListenError(f"{address[0]}:{address[1]} cannot be listened on: {_why(error)}")


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "it is in use"
    if error.errno == errno.EACCES:
        return "ports below 1024 need CAP_NET_BIND_SERVICE"
    return error.strerror or str(error)
