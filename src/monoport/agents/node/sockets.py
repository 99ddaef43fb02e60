"""Opens sockets with the login user's rights and hands them to the agent: connections, the forwarded agent's socket.

Belongs here: the child's side. Not here: what may be opened (`server`), what flows (`forwarding`). It runs without
site-packages, so it imports the standard library only. Requests and answers are JSON datagrams on one Unix socket; an
opened socket travels beside its answer (SCM_RIGHTS).
"""

from __future__ import annotations

import encodings.idna  # getaddrinfo needs it for names, and after the drop it may be out of reach
import json
import os
import socket
import tempfile
import threading
from typing import Any

CONNECT_SECONDS = 20.0  # sshd leaves this to the kernel, which tries for two minutes; nobody waits that long
AT_ONCE = 64  # connections being made at one time, a thread each
MAX_MESSAGE = 65_536  # bytes of one request: a host name or path and little else
BACKLOG = 16  # programs that may wait for the forwarded agent

_CODECS = encodings.idna  # keeps the import from looking unused


def serve(control: int) -> None:
    """Answer requests on the Unix socket `control` until its other end closes, then remove what was made."""
    made: list[str] = []
    room = threading.BoundedSemaphore(AT_ONCE)
    with socket.socket(fileno=control) as channel:
        while data := channel.recv(MAX_MESSAGE):
            request = json.loads(data)
            if request["want"] == "agent":
                _answer(channel, request["id"], *_agent_socket(made))
            elif room.acquire(blocking=False):
                threading.Thread(target=_connect, args=(channel, request, room), daemon=True).start()
            else:
                _answer(channel, request["id"], None, {"error": f"more than {AT_ONCE} connections are being made"})
    for path in made:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def _connect(channel: socket.socket, request: dict[str, Any], room: threading.BoundedSemaphore) -> None:
    found: socket.socket | None = None
    answer: dict[str, Any] = {}
    try:
        if request["want"] == "tcp":
            found = socket.create_connection((request["host"], request["port"]), CONNECT_SECONDS)
        else:
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            found.settimeout(CONNECT_SECONDS)
            found.connect(request["path"])
    except (OSError, ValueError, OverflowError) as error:
        answer = {"error": getattr(error, "strerror", None) or str(error)}
        if found is not None:
            found.close()
            found = None
    finally:
        room.release()
    _answer(channel, request["id"], found, answer)


def _agent_socket(made: list[str]) -> tuple[socket.socket | None, dict[str, Any]]:
    """Return a listening socket in a folder of the user's own (0700), and its path."""
    try:
        path = os.path.join(tempfile.mkdtemp(prefix="monoport-", dir="/tmp"), "agent")  # as ssh-agent
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            found.bind(path)
        finally:
            os.umask(before)
        found.listen(BACKLOG)
    except OSError as error:
        return None, {"error": error.strerror or str(error)}
    made.append(path)
    return found, {"path": path}


def _answer(channel: socket.socket, number: int, found: socket.socket | None, answer: dict[str, Any]) -> None:
    message = json.dumps({"id": number, **answer}).encode()
    if found is None:
        channel.send(message)
    else:
        with found:
            socket.send_fds(channel, [message], [found.fileno()])
