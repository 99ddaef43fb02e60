"""What a connection's forwarding keeps: listeners on the node, and the record of each forwarded connection.

Belongs here: their lives. Not here: whether they may be, and what is done with them (`forwarding`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from monoport.access.forwarding import Forwarding
from monoport.audit.log import Log
from monoport.net.meter import Meter


@dataclass(slots=True)
class Standing:
    """Something that listens on the node: its sockets, the tasks that accept, and a path to remove at its end."""

    kind: Forwarding
    target: str
    sockets: Sequence[socket.socket]
    path: str = ""
    name: str = ""  # DISPLAY of a display
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()  # which closes its socket, once the loop does not wait on it any more
        if not self.tasks:
            for one in self.sockets:
                one.close()


class Listener(asyncssh.SSHListener):
    """What asyncssh holds for a remote forwarding, and closes when the client cancels it.

    Args: its port, and what ends it.
    """

    def __init__(self, port: int, end: Callable[[], object]) -> None:
        super().__init__()
        self._port, self._end = port, end

    def get_port(self) -> int:
        return self._port

    def close(self) -> None:
        self._end()

    async def wait_closed(self) -> None:
        return  # `close` has ended it


class Record:
    """One forwarded connection in the audit log: its beginning before anything is connected, and its end."""

    def __init__(self, audit: Log, facts: Mapping[str, Any]) -> None:
        self._audit, self._facts = audit, facts
        self._began: float | None = None
        self.meter = Meter()

    async def begin(self, rule: str) -> None:
        await self._audit.emit("port.forward", **self._facts, rule=rule)
        self._began = asyncio.get_running_loop().time()

    async def end(self, error: str = "") -> None:
        """Record how it ended, if its beginning was."""
        if self._began is None:
            return
        seconds = round(asyncio.get_running_loop().time() - self._began, 3)
        counts = {"bytes_in": self.meter.bytes_in, "bytes_out": self.meter.bytes_out}
        await self._audit.emit("port.close", **self._facts, **counts, seconds=seconds, error=error or self.meter.ended)


def address(host: str, port: int) -> str:
    """Host and port as one word, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
