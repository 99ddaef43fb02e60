"""The audited relay: nothing reaches the server before the log has it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from monoport.agents.database.conversation import SLICE, Conversation, Passage, Unrecorded, Violation
from monoport.audit.outage import NotRecorded
from monoport.net.memory import pair
from monoport.net.sockets import SocketStream
from monoport.net.stream import HIGH_WATER, LIMIT, Stream

STATEMENTS = b" SELECT" * 10_000
TURNS = 50  # of the loop without a byte: nobody reads any more


class Log:
    """Takes what is recorded, as slowly as a test wants."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.most = 0  # of one call
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = asyncio.Event()
        self.error: Exception | None = None

    async def record(self, lines: Sequence[str]) -> None:
        self.most = max(self.most, len(lines))
        self.waiting.set()
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.lines.extend(lines)


def inspect(data: bytes | memoryview) -> list[str]:
    """Every line in upper case is a statement; an exclamation mark breaks the protocol."""
    text = bytes(data).decode()
    if "!" in text:
        raise ValueError("exclamation mark")
    return [line for line in text.split() if line.isupper()]


class Talk:
    """A conversation in memory: `client` and `server` are the far ends."""

    def __init__(self) -> None:
        self.client, near = pair()
        far, self.server = pair()
        self.near, self.far = near, far
        self.log = Log()
        self.conversation: Conversation[str] = Conversation(near, far, inspect, self.log.record)


@pytest.fixture
async def talk() -> Talk:
    return Talk()


async def read(stream: Stream, text: str) -> None:
    assert (await stream.read_exactly(len(text))).decode() == text


async def test_bytes_pass_both_ways_and_statements_are_recorded(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        await talk.client.write(b"data SELECT ")
        await read(talk.server, "data SELECT ")
        assert talk.log.lines == ["SELECT"]
        await talk.server.write(b"rows ")
        await read(talk.client, "rows ")
        await talk.client.write(b"bulk ")
        await read(talk.server, "bulk ")
        talk.server.close()
    assert running.result() == ""


async def test_a_statement_waits_for_the_log_and_what_follows_waits_behind_it(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(talk.conversation.run())
        talk.log.open.clear()
        await talk.client.write(b"DELETE ")
        await talk.log.waiting.wait()
        await talk.client.write(b"bulk ")
        await talk.client.write(b"INSERT ")
        await talk.server.write(b"notice ")
        await read(talk.client, "notice ")  # the server's bytes do not wait
        assert talk.far._peer._receiver.data == b""  # type: ignore[attr-defined]
        talk.log.open.set()
        await read(talk.server, "DELETE bulk INSERT ")
        assert talk.log.lines == ["DELETE", "INSERT"]
        talk.server.close()


async def test_without_the_log_nothing_goes_on(talk: Talk) -> None:
    talk.log.error = OSError("disk full")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_outcome(talk))
        await talk.client.write(b"DELETE ")
    error = running.result()
    assert isinstance(error, Unrecorded)
    assert (str(error), error.detail) == (str(NotRecorded()), "disk full")
    talk.far.close()
    assert await talk.server.read() == b""


async def test_a_violation_goes_nowhere(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_outcome(talk))
        await talk.client.write(b"fine ")
        await read(talk.server, "fine ")
        await talk.client.write(b"DELETE !")
    assert isinstance(running.result(), Violation)
    talk.far.close()
    assert await talk.server.read() == b""


async def test_half_close_goes_on_behind_what_waits(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        await talk.client.write(b"SELECT ")
        talk.client.send_eof()
        await read(talk.server, "SELECT ")
        assert await talk.server.read() == b""
        await talk.server.write(b"rows ")
        await read(talk.client, "rows ")
        talk.server.close()
    assert running.result() == ""


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_reset_ends_the_conversation(talk: Talk, side: str) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_outcome(talk))
        await talk.client.write(b"x ")
        await read(talk.server, "x ")
        getattr(talk, side).abort()
    assert isinstance(running.result(), ConnectionError)


class Sockets:
    """A conversation over sockets, whose far ends are plain: what they do not read waits here, and is counted."""

    def __init__(self) -> None:
        (self.client, near), (far, self.server) = socket.socketpair(), socket.socketpair()
        for each in (self.client, self.server):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LIMIT)  # a read finds as much as it may take
        self.near, self.far, self.log = SocketStream(near), SocketStream(far), Log()
        self.conversation: Conversation[str] = Conversation(self.near, self.far, inspect, self.log.record)
        self.most = 0

    async def pour(self, source: socket.socket, data: bytes, seen: int = 0) -> int:
        """Send until nothing is taken any more, all that fits at once, watching what waits; how much was taken."""
        stuck = 0
        while stuck < TURNS:
            stuck += 1
            with suppress(BlockingIOError):
                while sent := source.send(data):
                    seen, stuck = seen + sent, 0
            assert seen < 32 * LIMIT, "nobody stops the sender"
            await asyncio.sleep(0)
            self.most = max(self.most, self.near.waiting, self.far.waiting + self.conversation._waiting)
        return seen

    async def give(self, data: bytes) -> None:
        """Send what the conversation reads at once."""
        assert self.client.send(data) == len(data)
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def run(self) -> None:
        try:
            await self.conversation.run()
        finally:
            for each in (self.near, self.far):
                each.abort()
            for end in (self.client, self.server):
                end.close()


@asynccontextmanager
async def sockets() -> AsyncIterator[Sockets]:
    made = Sockets()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made.run())
        yield made
        running.cancel()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_who_never_reads_has_256_kib_waiting_at_most(who: str) -> None:
    async with sockets() as made:
        await made.pour(made.server if who == "client" else made.client, b"r" * 65_536)
        assert HIGH_WATER < made.most <= LIMIT
        assert made.conversation._waiting == 0, "no statement, nothing to wait for the log"


@pytest.mark.parametrize("reads", [True, False])
async def test_what_waits_for_the_log_is_within_that_limit_whether_the_server_reads_or_not(reads: bool) -> None:
    async with sockets() as made:
        if not reads:  # as much as may wait for the server while its client is still read from
            while not made.far.waiting:
                await made.give(b"b" * 4096)
            await made.give(b"b" * (HIGH_WATER - made.far.waiting))
            assert made.far.waiting == HIGH_WATER
        made.log.open.clear()
        await made.give(b" " * (HIGH_WATER - 7) + b" SELECT")
        await made.pour(made.client, STATEMENTS)
        assert HIGH_WATER < made.most <= LIMIT
        made.log.open.set()
        await made.pour(made.client, STATEMENTS)
        assert made.most <= LIMIT


async def test_a_client_that_never_reads_stops_the_server(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        sent = 0
        while talk.server.send(b"r" * 16_384) and sent < 10_000_000:
            sent += 16_384
            await asyncio.sleep(0)
        assert 0 < talk.near.waiting <= LIMIT
        got = 0
        while got < sent:
            got += len(await talk.client.read())
        talk.client.close()
        talk.server.close()
    assert running.result() == ""


async def test_a_server_that_never_reads_stops_the_client(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        sent = 0
        while talk.client.send(b"c" * 16_384) and sent < 10_000_000:
            sent += 16_384
            await asyncio.sleep(0)
        assert 0 < talk.far.waiting <= LIMIT
        got = 0
        while got < sent:
            got += len(await talk.server.read())
        talk.server.close()
    assert running.result() == ""


async def test_a_client_that_never_reads_its_refusals_is_not_read_from() -> None:
    client, near = pair()
    far, server = pair()

    def refuse(data: bytes | memoryview) -> Passage[str]:
        return Passage(["no"], answer=bytes(40 * len(data)))

    async with asyncio.TaskGroup() as group:
        running = group.create_task(Conversation(near, far, refuse, Log().record).run())
        sent = 0
        while client.send(b"n" * 4096) and sent < 10_000_000:
            sent += 4096
            for _ in range(8):
                await asyncio.sleep(0)
        assert sent < 1_000_000
        got = 0
        while got < 40 * sent:
            got += len(await client.read())
        server.close()
    assert running.result() == ""


async def test_of_a_breath_of_short_statements_no_more_is_looked_at_than_the_log_takes(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        talk.log.open.clear()
        talk.client.send(b"A " * 98_304)
        await talk.log.waiting.wait()
        talk.client.send(b"b ")
        talk.client.send_eof()
        talk.log.open.set()
        await read(talk.server, "A " * 98_304 + "b ")
        assert await talk.server.read() == b""
        talk.server.close()
    assert running.result() == ""
    assert len(talk.log.lines) == 98_304
    assert talk.log.most <= SLICE  # an event is a hundred times as large as such a statement


async def test_what_is_not_looked_at_yet_waits_for_a_server_that_does_not_read(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        for _ in range(4):
            talk.client.send(b"A " * 98_304)
            for _ in range(64):
                await asyncio.sleep(0)
        assert len(talk.log.lines) < 3 * 98_304
        await read(talk.server, "A " * 4 * 98_304)
        talk.server.close()
    assert running.result() == ""


async def test_told_to_end_it_waits_for_the_end_of_a_message(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        await talk.client.write(b"SELECT ")
        await read(talk.server, "SELECT ")
        talk.conversation.end("locked")
        await talk.client.write(b"MORE ")
        assert await running == "locked"
        settling = group.create_task(talk.conversation.settle(lambda tail: tail.endswith(b".")))
        await talk.server.write(b"half of a message")
        await talk.server.write(b", and its end.")
        assert await settling is True
    assert talk.log.lines == ["SELECT"]
    talk.far.close()
    assert await talk.server.read() == b""


async def test_a_silent_server_is_at_the_end_of_a_message(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoport.agents.database.conversation.SILENT", 0.01)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        await talk.server.write(b"notification")
        await read(talk.client, "notification")
        talk.conversation.end("expired")
        assert await running == "expired"
        assert await talk.conversation.settle(lambda tail: False) is True


async def test_a_server_that_does_not_stop_is_cut(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoport.agents.database.conversation.SETTLE", 0.05)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        talk.conversation.end("expired")
        assert await running == "expired"
        settling = group.create_task(talk.conversation.settle(lambda tail: False))
        while not settling.done():
            talk.server.send(b"row")
            await asyncio.sleep(0)
        assert settling.result() is False


async def test_a_server_that_leaves_while_we_settle(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(talk.conversation.run())
        await talk.client.write(b"x ")
        await read(talk.server, "x ")
        talk.conversation.end("expired")
        assert await running == "expired"
        talk.server.close()
        assert await talk.conversation.settle(lambda tail: False) is False


async def test_the_tail_is_kept_across_small_pieces(talk: Talk) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(talk.conversation.run())
        for piece in (b"0123456789abcdef0", b"Z", b"\0\0", b"\0\5I"):
            await talk.server.write(piece)
            await read(talk.client, piece.decode())
        assert talk.conversation.tail == b"789abcdef0Z\0\0\0\5I"[-16:]
        talk.server.close()


async def _outcome(talk: Talk) -> Exception:
    try:
        await talk.conversation.run()
    except (Violation, Unrecorded, ConnectionError) as error:
        return error
    raise AssertionError("the conversation ended well")


def rewrite(data: bytes | memoryview) -> Passage[str]:
    """`ask` becomes `ASK`; of `no` nothing goes on, and the client is told."""
    text = bytes(data).decode()
    if text == "no":
        return Passage(["no"], answer=b"denied")
    return Passage([text] if text == "ask" else [], text.upper().encode())


async def test_bytes_are_changed_withheld_and_answered_for() -> None:
    client, near = pair()
    far, server = pair()
    log = Log()
    conversation = Conversation(near, far, rewrite, log.record, heard=lambda data: bytes(data).replace(b"secret", b"-"))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(conversation.run())
        await client.write(b"plain")
        await read(server, "PLAIN")
        log.open.clear()
        await client.write(b"ask")
        await log.waiting.wait()
        assert server._receiver.data == b""  # type: ignore[attr-defined]
        log.open.set()
        await read(server, "ASK")
        await client.write(b"no")
        await read(client, "denied")
        await server.write(b"a secret b")
        await read(client, "a - b")
        server.close()
        assert await running == ""
    assert log.lines == ["ask", "no"]


async def test_a_server_that_breaks_the_protocol_ends_the_session() -> None:
    def listen(data: bytes | memoryview) -> bytes:
        raise ValueError("not like this")

    client, near = pair()
    far, server = pair()
    conversation = Conversation(near, far, inspect, Log().record, heard=listen)
    await server.write(b"x")
    with pytest.raises(Violation, match="not like this"):
        await conversation.run()
    client.abort()
