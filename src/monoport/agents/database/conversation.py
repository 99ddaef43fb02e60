"""The audited relay between a user and a real server, for any database protocol.

Belongs here: moving bytes, holding back what the audit log has not yet got, ending in an orderly way. What the bytes
mean is the engine's.

A statement goes to the server only when its event is durable: after a crash nothing has run that is not in the log.
What arrived in one read is one batch; the spool commits the batches of all sessions together, and bytes without
statements (COPY data above all) pass straight through.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from monoport.audit.outage import NotRecorded
from monoport.net.stream import HIGH_WATER, Stream
from monoport.net.wakeup import Wakeup

T = TypeVar("T")

SLICE = 16_384  # bytes of the client that are looked at in one go: a few thousand of the shortest statements
COST = 512  # bytes that an action keeps beside its text, until the audit log has it
TAIL = 16  # last bytes of the server's stream that are kept, for `quiet` to look at
SETTLE = 2.0  # seconds within which a running statement ends after a cancel; a session must be over within 5
SILENT = 0.25  # seconds of the server's silence after which its last message is taken to be whole


class Violation(Exception):
    """The client broke the protocol; nothing of what it sent last has reached the server."""


class Unrecorded(Exception):
    """The audit log did not take a statement; it has not reached the server.

    The text is for the client, who learns nothing of files, `detail` for the agent's log.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(NotRecorded()))
        self.detail = reason(error)


@dataclass(frozen=True, slots=True)
class Passage(Generic[T]):
    """What becomes of bytes of the client.

    actions: what they do, for the audit log. forward: what goes on to the server when that has them. answer: what the
    client is told at once, instead of the server's own words.
    """

    actions: Sequence[T] = ()
    forward: bytes | memoryview = b""
    answer: bytes = b""


class Conversation(Generic[T]):
    """One session's bytes, both ways, until either side ends.

    Args:
        client, server: streams behind the opening; this owns neither.
        inspect: reads the client's bytes as they pass and returns what they do, in a Passage where not all of them go
            on as they are; raises ValueError on a violation.
        record: makes the actions durable, in order.
        said: what the server has said last before this.
        heard: reads the server's bytes as they pass and returns what the client gets of them; as they are by default.
    """

    def __init__(
        self,
        client: Stream,
        server: Stream,
        inspect: Callable[[bytes | memoryview], Sequence[T] | Passage[T]],
        record: Callable[[Sequence[T]], Awaitable[None]],
        said: bytes = b"",
        *,
        heard: Callable[[bytes | memoryview], bytes | memoryview] | None = None,
    ) -> None:
        self._client = client
        self._server = server
        self._inspect = inspect
        self._record = record
        self._heard = heard
        self._news = False  # something for run() to do
        self._bell: Wakeup | None = None  # wakes it
        self._held: list[bytes] = []  # the client's bytes that wait for the audit log
        self._rest = b""  # behind those, not looked at yet
        # How many both are; beyond HIGH_WATER, what waits for the server included, nothing more is read.
        self._waiting = 0
        self._cost = 0  # what they do and are told keeps so much besides; beyond HIGH_WATER nothing more is looked at
        self._server_full = False  # the client is not read from until there is room again
        self._client_full = False  # likewise: it does not read what it is told
        self._actions: list[T] = []  # what they do
        self._answers: list[bytes] = []  # what the client is told behind them
        self._client_ended = False
        self._over = False
        self._error: Exception | None = None
        self._ending = ""
        self.tail = said[-TAIL:]  # the server's last bytes since the client's, at most TAIL
        self.heard = False  # the server has said something since this was last set to False

    async def run(self) -> str:
        """Move bytes until the server or the client is gone, and return why the session was told to end, or "".

        Raises Violation, Unrecorded, ConnectionError.
        """
        self._client.start(_Client(self))
        self._server.start(_Server(self))
        while not self._over and not self._ending:
            await self._rung()
            await self._pass_held()
            if self._client_ended and not self._held and not self._rest:
                self._server.send_eof()
        if self._error is not None:
            raise self._error
        return self._ending if not self._over else ""

    def end(self, reason: str) -> None:
        """Stop listening to the client; `run` returns `reason`."""
        self._ending = reason
        self._client.pause_reading()
        self._ring()

    async def settle(self, quiet: Callable[[bytes], bool]) -> bool:
        """Wait until the server's last message is whole, bounded by SETTLE, and return whether it is.

        Args:
            quiet: tells from the stream's last bytes that the server waits for its client.
        """
        try:
            async with asyncio.timeout(SETTLE):
                while not self._over and not quiet(self.tail):
                    self.heard = self._news = False
                    try:
                        async with asyncio.timeout(SILENT):
                            await self._rung()
                    except TimeoutError:
                        if not self.heard:
                            return True
        except TimeoutError:
            return False
        return not self._over

    async def _rung(self) -> None:
        """Wait until there is something to do."""
        if not self._news:
            bell = self._bell = Wakeup(self._client.loop)
            try:
                await bell
            finally:
                self._bell = None
        self._news = False

    def _ring(self) -> None:
        """Say that there is; the last act of whoever does, since it is done in here."""
        self._news = True
        bell = self._bell
        if bell is not None:
            self._bell = None
            bell.wake()

    async def _pass_held(self) -> None:
        """Record what waits, then let it go on to the server; more may come meanwhile."""
        while not self._over and not self._ending:
            if not self._held:
                if not self._rest or self._server_full or self._client_full:
                    self._read_on()
                    return
                rest, self._rest = self._rest, b""
                self._waiting -= len(rest)
                self._look(rest)
                continue
            held, self._held = self._held, [b""]  # not empty: what comes while we wait has to queue behind this
            actions, self._actions = self._actions, []
            answers, self._answers = self._answers, []
            cost = self._cost
            try:
                await self._record(actions)
            except Exception as error:
                raise Unrecorded(error) from error
            self._cost -= cost
            if whole := b"".join(held):
                self._waiting -= len(whole)
                self._send(whole)
            if answers and not self._client.send(b"".join(answers)):
                self._client_full = True
                self._client.pause_reading()
            del self._held[0]

    def _read_on(self) -> None:
        """Read from the client again, if nothing waits before what it says next."""
        if not (self._held or self._rest or self._server_full or self._client_full or self._ending):
            self._client.resume_reading()

    def _send(self, data: bytes | memoryview) -> None:
        """Give the server what may go on."""
        self.tail = b""
        if not self._server.send(data):
            self._server_full = True
            self._client.pause_reading()

    # from the two sides

    def from_client(self, data: bytes | memoryview) -> None:
        """Bytes of the client: straight on unless they, or others before them, wait for the audit log."""
        if self._over or self._ending:
            return
        if self._rest:
            self._put_off(data)
        else:
            self._look(data)
        if self._held or self._over:
            self._ring()

    def _look(self, data: bytes | memoryview) -> None:
        """See what bytes of the client do, slice by slice, for as long as there is room for it."""
        straight: list[bytes | memoryview] = []
        same = 0  # bytes that go on as they came: COPY data is not put together anew
        for start in range(0, len(data), SLICE):
            if self._cost > HIGH_WATER:
                self._put_off(data[start:])
                break
            try:
                passage = self._inspect(data[start : start + SLICE])
            except ValueError as error:
                self._over, self._error = True, Violation(str(error))
                return
            if not isinstance(passage, Passage):
                if not passage and not self._held:
                    same = start + SLICE
                    continue
                passage = Passage(passage, data[start : start + SLICE])
            if passage.actions or passage.answer or self._held:
                self._hold(passage)
            elif passage.forward:
                straight.append(passage.forward)
        if same:
            self._send(data[:same])
        elif straight:
            self._send(b"".join(straight) if len(straight) > 1 else straight[0])
        waits = self._waiting + self._server.waiting
        if self._rest or (self._held and max(waits, self._cost) > HIGH_WATER):
            self._client.pause_reading()

    def _put_off(self, data: bytes | memoryview) -> None:
        """Keep bytes of the client until there is room for what they do."""
        self._rest += data
        self._waiting += len(data)

    def _hold(self, passage: Passage[T]) -> None:
        """Keep what waits for the audit log, or behind what does."""
        self._held.append(bytes(passage.forward))
        self._actions.extend(passage.actions)
        if passage.answer:
            self._answers.append(passage.answer)
        self._waiting += len(passage.forward)
        self._cost += len(passage.answer) + COST * len(passage.actions)

    def from_server(self, data: bytes | memoryview) -> None:
        """Bytes of the server, on to the client."""
        self.heard = True
        if self._heard is not None:
            try:
                data = self._heard(data)
            except ValueError as error:
                self.finish(Violation(str(error)))
                return
            if not data:
                return
        self.tail = bytes(data[-TAIL:]) if len(data) >= TAIL else (self.tail + bytes(data))[-TAIL:]
        if not self._client.send(data):
            self._server.pause_reading()
        if self._ending:
            self._ring()

    def client_ended(self) -> None:
        """The client has sent everything."""
        self._client_ended = True
        self._ring()

    def client_has_room(self) -> None:
        """The client takes more of what it is told."""
        self._server.resume_reading()
        if self._client_full:
            self._client_full = False
            self._ring()

    def server_has_room(self) -> None:
        """The server takes more of what the client says."""
        self._server_full = False
        if self._rest:
            self._ring()
        else:
            self._read_on()

    def finish(self, error: Exception | None) -> None:
        """One side is gone, or must be."""
        if not self._over:
            self._over = True
            self._error = error
        self._ring()


def reason(error: BaseException) -> str:
    """Return why something failed, on one line: of an exception group, why its first part did."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split()) or type(error).__name__


class _Client(Generic[T]):
    __slots__ = ("_owner",)

    def __init__(self, owner: Conversation[T]) -> None:
        self._owner = owner

    def data_received(self, data: bytes | memoryview) -> None:
        self._owner.from_client(data)

    def eof_received(self) -> None:
        self._owner.client_ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.finish(error)

    def resume_writing(self) -> None:
        self._owner.client_has_room()


class _Server(Generic[T]):
    __slots__ = ("_owner",)

    def __init__(self, owner: Conversation[T]) -> None:
        self._owner = owner

    def data_received(self, data: bytes | memoryview) -> None:
        self._owner.from_server(data)

    def eof_received(self) -> None:
        self._owner.finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.finish(error)

    def resume_writing(self) -> None:
        self._owner.server_has_room()
