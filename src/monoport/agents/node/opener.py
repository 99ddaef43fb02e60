"""Sockets with the login user's rights: the agent's side of the `sockets` child.

Belongs here: asking the child. Not here: whether it is allowed, and what flows (`forwarding`).
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

import structlog

from monoport.agents.node import child
from monoport.agents.node.account import Account
from monoport.agents.node.process import Child

ANSWER_SECONDS = 25.0  # the child itself gives up a connection after 20
MAX_ANSWER = 65_536  # bytes; the child's answers are a path or an error
MAX_SOCKETS = 16  # beside one answer: a host name on which to listen may have several addresses


class Opener:
    """A child of the login user that opens sockets; it is started by the first wish.

    Args: whose rights it has, and the session's log.
    """

    def __init__(self, account: Account, log: structlog.typing.FilteringBoundLogger) -> None:
        self._account, self._log = account, log
        self._loop = asyncio.get_running_loop()
        self._control: socket.socket | None = None
        self._child: Child | None = None
        self._open = True
        self._next = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[socket.socket]]]] = {}

    async def tcp(self, host: str, port: int) -> socket.socket:
        """Return a socket connected to host and port; raises OSError."""
        return (await self._ask(want="tcp", host=host, port=port))[1][0]

    async def unix(self, path: str) -> socket.socket:
        """Return a socket connected to a Unix socket; raises OSError."""
        return (await self._ask(want="unix", path=path))[1][0]

    async def listen(self, hosts: Sequence[str], port: int) -> list[socket.socket]:
        """Return sockets that listen on every address of `hosts`, all on one port (0: any); raises OSError."""
        return (await self._ask(want="listen", hosts=list(hosts), port=port))[1]

    async def listen_unix(self, path: str) -> socket.socket:
        """Return a socket that listens at a path, which must be new; it goes with `remove` or us. Raises OSError."""
        return (await self._ask(want="listen_unix", path=path))[1][0]

    async def agent(self) -> tuple[str, socket.socket]:
        """Return the path of a new socket of the user's own and the socket that listens there; raises OSError."""
        answer, (listening,) = await self._ask(want="agent")
        return str(answer["path"]), listening

    async def display(self, protocol: str, cookie: bytes) -> tuple[int, str, list[socket.socket]]:
        """Return a new display's number, its Xauthority file and the sockets that listen; raises OSError."""
        answer, found = await self._ask(want="display", protocol=protocol, cookie=cookie.hex())
        return int(answer["display"]), str(answer["path"]), found

    def remove(self, path: str) -> None:
        """Have a file or socket that was made here removed, at the latest with the child."""
        if self._control is not None:
            try:
                self._control.send(json.dumps({"id": 0, "want": "remove", "path": path}).encode())
            except OSError as error:  # the child is busy or gone: it removes everything at its end
                self._log.info("not removed yet", path=path, error=str(error))

    async def _ask(self, **wish: object) -> tuple[dict[str, Any], list[socket.socket]]:
        if not self._open:
            raise OSError("the child is gone")
        control = self._control or self._start()
        self._next += 1
        number = self._next
        answer = self._waiting[number] = self._loop.create_future()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._loop.sock_sendall(control, json.dumps({"id": number, **wish}).encode())
                said, found = await answer
        except TimeoutError as error:
            raise OSError("no answer in time") from error
        finally:
            self._waiting.pop(number, None)
        if not said or "error" in said:
            raise OSError(str(said.get("error", "the child is gone")))
        return said, found

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        account = self._account
        order = child.Order(
            "sockets", account.login, account.uid, account.gid, account.home, account.shell, False, None, {}
        )
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._child = Child(order, theirs.fileno(), nothing, nothing)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(nothing)
        ours.setblocking(False)
        self._loop.add_reader(ours, self._answered, ours)
        self._control = ours
        return ours

    def _answered(self, control: socket.socket) -> None:
        try:
            data, ancillary, _flags, _address = control.recvmsg(
                MAX_ANSWER, socket.CMSG_SPACE(4 * MAX_SOCKETS), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            return
        found = _passed(ancillary)
        said = json.loads(data)
        waiting = self._waiting.get(said["id"])
        if waiting is not None and not waiting.done():
            waiting.set_result((said, found))
        else:
            for sock in found:
                sock.close()

    def close(self) -> None:
        """Let the child go, which removes what it made; it may be called again."""
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(({}, []))
        if self._child is not None and self._open:
            self._open = False
            self._child.let_go()

    async def wait_closed(self) -> None:
        """Wait until the child has removed what it made and ended, for a moment at most."""
        if self._child is not None:
            await self._child.gone()


def _passed(ancillary: list[tuple[int, int, bytes]]) -> list[socket.socket]:
    """Return the descriptors that came beside a message (unix(7), SCM_RIGHTS) as sockets."""
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return [socket.socket(fileno=one) for one in descriptors]
