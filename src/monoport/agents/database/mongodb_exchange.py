"""One MongoDB connection between a client and a real server: one request after the other, and its replies.

Belongs here: moving whole requests and flowing replies, keeping both sides' bytes bounded, ending in an orderly way.
What a request means and whether it may go on is asked of `judge`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from monoport.agents.database.conversation import Violation
from monoport.net.stream import Stream
from monoport.wire.mongodb.messages import HEADER, Framer, ProtocolError
from monoport.wire.mongodb.replies import Replies

CHUNK = 65_536  # bytes of a long request that are given to the server at once
AHEAD = 65_536  # bytes of further requests that are taken while one runs; reading on shows that a client is gone
LARGE = 1 << 20  # bytes from which a request needs room of what the agent keeps in all
ROOM = 192_000_000  # bytes of large requests that wait to be whole, of all clients of one database: four of the largest
SETTLE = 2.0  # seconds within which a session that must end has told its client; it must be over within 5
PATIENCE = 10.0  # seconds for a request to be whole, and one more for every
SLOWEST = 100_000  # bytes of it


@dataclass(frozen=True, slots=True)
class Pass:
    """Give the server `data`; `rewrite`, if there is one, makes what the client gets of the whole reply.

    `request_id`: of the request. `answered`: whether there is a reply. `keep`: bytes of a reply to rewrite at most.
    """

    data: bytes
    request_id: int
    answered: bool = True
    rewrite: Callable[[bytes], bytes] | None = None
    keep: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Give the client `data`, the server nothing; `last`: then close."""

    data: bytes
    last: bool = False


Verdict: TypeAlias = Pass | Answer


class Room:
    """Bytes that all exchanges of one database may keep of large requests."""

    def __init__(self, size: int = ROOM) -> None:
        self._left = size
        self._freed = asyncio.Condition()

    async def take(self, size: int) -> None:
        """Wait until there is room for so many bytes."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._left >= size)
            self._left -= size

    async def give(self, size: int) -> None:
        """Give back what was taken."""
        async with self._freed:
            self._left += size
            self._freed.notify_all()


class Exchange:
    """One session's requests and replies, until either side ends.

    Args:
        client, server: streams behind the opening; this owns neither.
        judge: decides about one whole request; what it says is done before the next one is looked at.
        ended: makes the words for a client whose session ends, of the request that waits for an answer, if one does.
        room: for large requests.
    """

    def __init__(
        self,
        client: Stream,
        server: Stream,
        judge: Callable[[bytes], Awaitable[Verdict]],
        ended: Callable[[str, int], bytes],
        room: Room,
    ) -> None:
        self._client = client
        self._server = server
        self._judge = judge
        self._ended = ended
        self._room = room
        self._framer = Framer()
        self._replies = Replies()
        self._news = asyncio.Event()
        self._paused = False
        self._client_ended = False
        self._over = False
        self._error: Exception | None = None
        self._ending = ""
        self.asked = 0  # id of the request that the client waits for
        self._taken = 0  # bytes of the room that the present request has

    async def run(self) -> str:
        """Serve requests until the server or the client is gone, and return why the session was told to end, or "".

        Raises Violation, ConnectionError, and what `judge` raises.
        """
        self._client.start(_Client(self))
        self._server.start(_Server(self))
        try:
            while (request := await self._next()) is not None and await self._serve(request):
                del request  # up to 48 MB
                await self._give_room()
        finally:
            await self._give_room()
        if self._error is not None:
            raise self._error
        if self._ending and not self._over and not self._replies.begun:
            self._client.send(self._ended(self._ending, self.asked))
        return self._ending

    def end(self, reason: str) -> None:
        """Stop serving; `run` tells the client and returns `reason`."""
        self._ending = reason
        self._client.loop.call_later(SETTLE, self._cut)
        self._news.set()

    def _cut(self) -> None:
        """Wake `run` where it still writes to a server or a client that does not read."""
        self._server.abort()
        self._client.abort()

    async def _next(self) -> bytes | None:
        """The next whole request; None when the session is over. Raises Violation for one that never gets whole."""
        try:
            while not self._stopped:
                whole = self._framer.take()
                if whole is not None:
                    return whole
                if self._client_ended:
                    return None
                size = self._framer.size
                async with asyncio.timeout(PATIENCE + size / SLOWEST if self._framer.waiting else None):
                    if size > LARGE and not self._taken:
                        await self._room.take(size)
                        self._taken = size
                    await self._heard()
        except ProtocolError as error:
            raise Violation(str(error)) from error
        except TimeoutError as error:
            raise Violation(f"a request of {self._framer.size} bytes was not whole in time") from error
        return None

    async def _give_room(self) -> None:
        taken, self._taken = self._taken, 0
        if taken:
            await self._room.give(taken)

    async def _heard(self) -> None:
        """Wait until there is something new."""
        if self._paused and self._wanted() > 0:
            self._paused = False
            self._client.resume_reading()
        await self._news.wait()
        self._news.clear()

    async def _serve(self, request: bytes) -> bool:
        """Do with one request what is decided about it; whether there may be a next one."""
        self.asked = HEADER.unpack_from(request)[1]
        verdict = await self._judge(request)
        if self._stopped:
            return False
        if isinstance(verdict, Answer):
            await _write(self._client, verdict.data)
            self.asked = 0
            return not verdict.last
        if verdict.answered:
            self._replies.expect(verdict.request_id, keep=verdict.keep)
        else:
            self._replies.unwanted(verdict.request_id)
        await _write(self._server, verdict.data)
        while not (self._replies.done or self._stopped):
            if self._client_ended:
                self.finish(None)  # nobody waits any more for what runs
            else:
                await self._heard()
        if not self._replies.done:
            return False
        if verdict.rewrite is not None:
            await _write(self._client, verdict.rewrite(self._replies.whole()))
        self.asked = 0
        return True

    @property
    def _stopped(self) -> bool:
        return self._over or bool(self._ending)

    def _wanted(self) -> int:
        """How many bytes of the client there is use for: AHEAD, or those of a large request once it has room."""
        size = self._framer.size if self._replies.done and (self._framer.size <= LARGE or self._taken) else 0
        return max(AHEAD, size) - self._framer.waiting

    # from the two sides

    def from_client(self, data: bytes | memoryview) -> None:
        """Bytes of the client: kept until a request is whole."""
        if self._over or self._ending:
            return
        self._framer.add(data)
        if not self._paused and self._wanted() <= 0:
            self._paused = True
            self._client.pause_reading()
        self._news.set()

    def from_server(self, data: bytes | memoryview) -> None:
        """Bytes of the server, on to the client as they come."""
        if self._over or self._ending:
            return
        try:
            parts = self._replies.receive(data)
        except ProtocolError as error:
            self.finish(ConnectionError(str(error)))
            return
        for part in parts:
            if not self._client.send(part):
                self._server.pause_reading()
        if self._replies.done:
            self._news.set()

    def client_ended(self) -> None:
        """The client has sent everything; what is whole of it is still served."""
        self._client_ended = True
        self._news.set()

    def client_has_room(self) -> None:
        """The client takes more of what the server says."""
        self._server.resume_reading()

    def finish(self, error: Exception | None) -> None:
        """One side is gone, or must be: what runs on the server shall not run on for nobody."""
        if not self._over:
            self._over = True
            self._error = error
            if error is not None or not self._replies.done:
                self._server.abort()
        self._news.set()


class _Client:
    __slots__ = ("_owner",)

    def __init__(self, owner: Exchange) -> None:
        self._owner = owner

    def data_received(self, data: bytes | memoryview) -> None:
        self._owner.from_client(data)

    def eof_received(self) -> None:
        self._owner.client_ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.finish(error)

    def resume_writing(self) -> None:
        self._owner.client_has_room()


async def _write(stream: Stream, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        await stream.write(view[start : start + CHUNK])


class _Server:
    __slots__ = ("_owner",)

    def __init__(self, owner: Exchange) -> None:
        self._owner = owner

    def data_received(self, data: bytes | memoryview) -> None:
        self._owner.from_server(data)

    def eof_received(self) -> None:
        self._owner.finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.finish(error)

    def resume_writing(self) -> None: ...
