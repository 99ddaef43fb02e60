"""What leaves the node for others: forwarded connections and the user's forwarded agent, opened with the user's rights.

Belongs here: asking the `sockets` child. Not here: whether it is allowed (`server`).
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from typing import Any

from monoport.agents.node import child
from monoport.agents.node.account import Account
from monoport.agents.node.process import Child

ANSWER_SECONDS = 25.0  # the child itself gives up a connection after 20
MAX_ANSWER = 65_536  # bytes; the child's answers are a path or an error


class Opener:
    """A child of the login user that opens sockets; it is started by the first wish.

    Args: whose rights it has.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._control: socket.socket | None = None
        self._child: Child | None = None
        self._open = True
        self._next = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], socket.socket | None]]] = {}

    async def tcp(self, host: str, port: int) -> socket.socket:
        """Return a socket connected to host and port; raises OSError."""
        return (await self._ask(want="tcp", host=host, port=port))[1]

    async def unix(self, path: str) -> socket.socket:
        """Return a socket connected to a Unix socket; raises OSError."""
        return (await self._ask(want="unix", path=path))[1]

    async def agent(self) -> tuple[str, socket.socket]:
        """Return the path of a new socket of the user's own and the socket that listens there; raises OSError."""
        answer, listening = await self._ask(want="agent")
        return str(answer["path"]), listening

    async def _ask(self, **wish: object) -> tuple[dict[str, Any], socket.socket]:
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
        if found is None:
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
                MAX_ANSWER, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
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
        elif found is not None:
            found.close()

    def close(self) -> None:
        """Let the child go, which removes what it made; it may be called again."""
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(({}, None))
        if self._child is not None and self._open:
            self._open = False
            self._child.let_go()

    async def wait_closed(self) -> None:
        """Wait until the child has removed what it made and ended, for a moment at most."""
        if self._child is not None:
            await self._child.gone()


def _passed(ancillary: list[tuple[int, int, bytes]]) -> socket.socket | None:
    """Return the one descriptor that came beside a message (unix(7), SCM_RIGHTS) as a socket."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data[: descriptors.itemsize])
            return socket.socket(fileno=descriptors[0])
    return None
