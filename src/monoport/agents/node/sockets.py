"""Opens and makes sockets with the login user's rights and hands them to the agent.

Belongs here: the child's side. Not here: what may be opened (`forwarding`), what flows. It runs without site-packages,
so it imports the standard library only. Requests and answers are JSON datagrams on one Unix socket; opened sockets
travel beside their answer (SCM_RIGHTS).
"""

from __future__ import annotations

import encodings.idna  # getaddrinfo needs it for names, and after the drop it may be out of reach
import errno
import json
import os
import socket
import stat
import tempfile
import threading
from typing import Any

from monoport.agents.node import display

CONNECT_SECONDS = 20.0  # sshd leaves this to the kernel, which tries for two minutes; nobody waits that long
AT_ONCE = 64  # requests being carried out at one time, a thread each
MAX_MESSAGE = 65_536  # bytes of one request: a host name or path and little else
BACKLOG = 16  # programs that may wait for the forwarded agent or at another listener
MAX_SOCKETS = 16  # beside one answer: addresses of a name on which to listen
TRIES = 8  # ports that are tried where any will do but one address family has it in use
LOOPBACK = ("127.0.0.1", "::1")
PRIVATE = 0o177  # umask of sockets and files: nobody else's, as sshd's StreamLocalBindMask
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # this machine has no such address family

_CODECS = encodings.idna  # keeps the import from looking unused
Answer = tuple[list[socket.socket], dict[str, Any]]


def serve(control: int) -> None:
    """Carry out requests on the Unix socket `control` until its other end closes, then remove what was made."""
    made = Made()
    room = threading.BoundedSemaphore(AT_ONCE)
    with socket.socket(fileno=control) as channel:
        while data := channel.recv(MAX_MESSAGE):
            request = json.loads(data)
            if room.acquire(blocking=False):
                threading.Thread(target=_carry_out, args=(channel, request, made, room), daemon=True).start()
            else:
                _answer(channel, request["id"], [], {"error": f"more than {AT_ONCE} requests at one time"})
    made.remove_all()


def _carry_out(channel: socket.socket, request: dict[str, Any], made: Made, room: threading.BoundedSemaphore) -> None:
    try:
        found, answer = _result(request, made)
    except (OSError, ValueError, OverflowError) as error:
        found, answer = [], {"error": getattr(error, "strerror", None) or str(error)}
    finally:
        room.release()
    _answer(channel, request["id"], found, answer)


def _result(request: dict[str, Any], made: Made) -> Answer:
    """Do what was asked; raises OSError, ValueError or OverflowError."""
    match request["want"]:
        case "tcp":
            return [socket.create_connection((request["host"], request["port"]), CONNECT_SECONDS)], {}
        case "unix":
            return [_connect_unix(request["path"])], {}
        case "listen":
            return _listen_tcp(request["hosts"], request["port"]), {}
        case "listen_unix":
            return [made.listen(request["path"])], {}
        case "agent":
            path = os.path.join(made.folder(), "agent")
            return [made.listen(path)], {"path": path}
        case "display":
            return _display(request, made)
        case "remove":
            made.remove(request["path"])
            return [], {}
        case other:
            raise ValueError(f"unknown request {other}")


def _connect_unix(path: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.settimeout(CONNECT_SECONDS)
        found.connect(path)
    except BaseException:
        found.close()
        raise
    return found


class Made:
    """What lies in folders because of us, and goes when we do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, tuple[int, int]] = {}  # with device and inode: what another put there stays
        self._folders: list[str] = []
        self._over = False

    def folder(self) -> str:
        """Return a new folder of the user's own (0700)."""
        with self._lock:
            self._still_on()
            path = tempfile.mkdtemp(prefix="monoport-", dir="/tmp")  # as ssh-agent
            self._folders.append(path)
        return path

    def listen(self, path: str) -> socket.socket:
        """Return a socket that listens at `path`, which must not be there yet."""
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._lock:
                self._still_on()
                before = os.umask(PRIVATE)
                try:
                    found.bind(path)
                finally:
                    os.umask(before)
                self._note(path)
            found.listen(BACKLOG)
        except BaseException:
            found.close()
            raise
        return found

    def write(self, path: str, data: bytes) -> None:
        """Write a new file that nobody else may read."""
        with self._lock:
            self._still_on()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            self._note(path)

    def remove(self, path: str) -> None:
        """Remove one of ours, with its folder if that was made for it."""
        with self._lock:
            self._remove(path)

    def remove_all(self) -> None:
        """Remove everything; nothing is made from now on."""
        with self._lock:
            self._over = True
            for path in list(self._paths):
                self._remove(path)
            for folder in self._folders:
                _remove_folder(folder)

    def _still_on(self) -> None:
        if self._over:
            raise OSError("the session is over")

    def _note(self, path: str) -> None:
        found = os.lstat(path)
        self._paths[path] = (found.st_dev, found.st_ino)

    def _remove(self, path: str) -> None:
        ours = self._paths.pop(path, None)
        try:
            found = os.lstat(path)
            if ours == (found.st_dev, found.st_ino) and not stat.S_ISDIR(found.st_mode):
                os.unlink(path)
        except FileNotFoundError:  # the user was quicker
            pass
        folder = os.path.dirname(path)
        if folder in self._folders:
            self._folders.remove(folder)
            _remove_folder(folder)


def _remove_folder(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):  # those: the user has removed it, or uses it
            raise


def _listen_tcp(hosts: list[str], port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of `hosts`, all on one port, which 0 leaves open."""
    for _ in range(TRIES - 1 if port == 0 else 0):
        try:
            return _listen_on(hosts, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _listen_on(hosts, port)


def _listen_on(hosts: list[str], port: int) -> list[socket.socket]:
    found: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in _addresses(hosts):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
                continue
            found.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
                found.pop().close()
                continue
            sock.listen(BACKLOG)
            port = port or sock.getsockname()[1]
        if not found:
            raise absent or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def _addresses(hosts: list[str]) -> list[tuple[int, str]]:
    """Every address of the hosts, once, with its family."""
    found: dict[tuple[int, str], None] = {}
    for host in hosts:
        for family, _kind, _protocol, _name, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            found[family, str(address[0])] = None
    return list(found)[:MAX_SOCKETS]


def _display(request: dict[str, Any], made: Made) -> Answer:
    """Take the first display number that is free, and write its cookie where the user's programs find it."""
    for number in range(display.FIRST, display.LAST):
        try:
            found = _listen_on(list(LOOPBACK), display.BASE_PORT + number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        try:
            path = os.path.join(made.folder(), "Xauthority")
            protocol, cookie = request["protocol"].encode("ascii"), bytes.fromhex(request["cookie"])
            made.write(path, display.authority(os.fsencode(socket.gethostname()), number, protocol, cookie))
        except BaseException:
            for sock in found:
                sock.close()
            raise
        return found, {"display": number, "path": path}
    raise OSError(errno.EADDRINUSE, "every display number is in use")


def _answer(channel: socket.socket, number: int, found: list[socket.socket], answer: dict[str, Any]) -> None:
    message = json.dumps({"id": number, **answer}).encode()
    try:
        if found:
            socket.send_fds(channel, [message], [sock.fileno() for sock in found])
        else:
            channel.send(message)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):  # those: the agent has gone
            raise
    finally:
        for sock in found:
            sock.close()
