"""One HTTP connection over memory: what is answered, what is refused, and what a bad peer costs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import StreamingResponse

from monoport.net import memory
from monoport.net.http import DEFAULT, Limits, serve_http
from monoport.net.stream import Stream

QUICK = Limits(header_seconds=0.05, body_seconds=0.05, idle_seconds=0.05, write_seconds=0.05, body_bytes=100)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was asked."""
    message = await receive()
    assert not message["more_body"]
    body = json.dumps(
        {"path": scope["path"], "body": message["body"].decode("latin-1"), "state": scope["state"]}
    ).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(app: Any = echo, limits: Limits = DEFAULT, limit: int = 262_144) -> AsyncIterator[Stream]:
    client, server = memory.pair(limit)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve_http(server, app, state={"who": "me"}, limits=limits, client=("10.0.0.1", 5)))
        yield client
        if not client.lost:
            client.close()
        await serving


async def rest(stream: Stream) -> bytes:
    data = b""
    while piece := await stream.read():
        data += piece
    return data


def bodies(data: bytes) -> list[Any]:
    """The JSON bodies of answers with a Content-Length, one after the other."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2])
        found.append(json.loads(data[:length]))
        data = data[length:]
    return found


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


async def test_a_request_and_its_state() -> None:
    async with served() as client:
        await client.write(b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = await rest(client)
    assert status(data) == 200
    assert b"\r\nDate: " in data
    assert bodies(data) == [{"path": "/a b", "body": "", "state": {"who": "me"}}]


async def test_a_large_answer_in_pieces_arrives_whole_and_the_connection_goes_on() -> None:
    """Starlette watches for the peer's end beside a stream of pieces, and cancels that watch behind the last."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 65_536

        await StreamingResponse(pieces(), headers={"content-length": str(20 * 65_536)})(scope, receive, send)

    async with served(app) as client:
        for _ in range(3):
            await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await client.read_exactly(1)
            assert status(head) == 200
            assert await client.read_exactly(20 * 65_536) == b"x" * 20 * 65_536


async def test_byte_by_byte() -> None:
    async with served() as client:
        for byte in b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello":
            await client.write(bytes([byte]))
            await asyncio.sleep(0)
        assert bodies(await rest(client))[0]["body"] == "hello"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with served() as client:
        request = "POST /{0} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{0}"
        await client.write("".join(request.format(n) for n in range(9)).encode())
        client.send_eof()
        answers = bodies(await rest(client))
    assert [answer["path"] for answer in answers] == [f"/{n}" for n in range(9)]
    assert [answer["body"] for answer in answers] == [str(n) for n in range(9)]


async def test_a_connection_is_used_again_and_ends_at_its_limit() -> None:
    async with served(limits=Limits(requests=2)) as client:
        await client.write(
            b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        data = await rest(client)
    assert [answer["path"] for answer in bodies(data)] == ["/1", "/2"]
    assert data.lower().count(b"connection: close") == 1


async def test_head_has_no_body() -> None:
    async with served() as client:
        await client.write(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = await rest(client)
    assert status(data) == 200
    assert data.endswith(b"\r\n\r\n")


async def test_chunked_request() -> None:
    async with served() as client:
        await client.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        )
        assert bodies(await rest(client))[0]["body"] == "ab"


async def test_a_client_that_asks_first_is_told_to_continue() -> None:
    async with served() as client:
        await client.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert (await client.read()).startswith(b"HTTP/1.1 100 ")
        await client.write(b"ok")
        assert bodies(await rest(client))[0]["body"] == "ok"


@pytest.mark.parametrize(
    ("request_", "expected", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, "bad_request"),
        (b"\x00" * 5000 + b"\r\n\r\n", 400, "bad_request"),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "bad_request"),
        (b"GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"CONNECT x:22 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nX: \x00\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000, 431, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "bad_request"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", 413, "too_large"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n", 413, "too_large"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n70\r\n" + b"a" * 112 + b"\r\n",
            413,
            "too_large",
        ),
    ],
)
async def test_what_is_refused(request_: bytes, expected: int, code: str) -> None:
    async with served(limits=Limits(body_bytes=100)) as client:
        await client.write(request_)
        data = await rest(client)
    assert status(data) == expected
    assert bodies(data)[0]["error"]["code"] == code
    assert b"connection: close" in data.lower()


async def test_a_silent_peer_is_let_go() -> None:
    async with served(limits=QUICK) as client:
        assert await rest(client) == b""


async def test_a_head_must_be_whole_in_time_however_often_a_byte_comes() -> None:
    async with served(limits=replace(QUICK, header_bytes=1 << 24)) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\nSlow: ")
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rest(client))
            while not answer.done():
                client.send(b"x")
                await asyncio.sleep(0)
    assert status(answer.result()) == 408


async def test_a_head_that_stops_is_told_so() -> None:
    async with served(limits=QUICK) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        data = await rest(client)
    assert status(data) == 408
    assert bodies(data)[0]["error"]["message"] == "no whole request head in 0.05 s"


async def test_a_body_must_be_whole_in_time() -> None:
    async with served(limits=QUICK) as client:
        await client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        data = await rest(client)
    assert status(data) == 408
    assert bodies(data)[0]["error"]["message"] == "4 bytes of the body in 0.05 s and not its end"


async def test_an_idle_connection_is_let_go_without_a_word() -> None:
    async with served(limits=QUICK) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        data = await rest(client)
    assert len(bodies(data)) == 1


async def test_a_peer_that_leaves_in_the_middle_is_nobody_to_answer() -> None:
    async with served() as client:
        await client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        client.send_eof()
        assert await rest(client) == b""


async def test_a_peer_that_resets_ends_the_connection() -> None:
    async with served() as client:
        await client.write(b"GET / HTTP/1.1\r\n")
        client.abort(ConnectionResetError("gone"))


async def test_an_answer_that_is_never_read_ends() -> None:
    async def endless(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})

    async with served(endless, QUICK, limit=65_536) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.wait_closed()


async def test_a_streamed_answer_sees_that_its_reader_left() -> None:
    left = asyncio.Event()

    async def watch(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()
        await send({"type": "http.response.body", "body": b""})

    async with served(watch) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.read()
        client.send_eof()
        await left.wait()
        assert (await rest(client)).endswith(b"0\r\n\r\n")


async def test_what_comes_during_an_answer_waits_and_is_bounded() -> None:
    received = asyncio.Event()

    async def watch(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/watch":
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(receive())
                await received.wait()
                assert not waiting.done()
                waiting.cancel()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with served(watch, Limits(requests=3)) as client:
        await client.write(b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0)
        await client.write(
            b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\nPOST /3 HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
        )
        await client.write(b"x" * 60_000)
        received.set()
        data = await rest(client)
    assert data.count(b"HTTP/1.1 204 No Content\r\n") == 3


@pytest.mark.parametrize("started", [False, True])
async def test_a_failing_application_is_logged_and_answered(started: bool) -> None:
    async def failing(_scope: Any, _receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("secret detail")

    async with served(failing) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        if started:
            with pytest.raises(ConnectionError):
                await rest(client)
        else:
            data = await rest(client)
            assert status(data) == 500
            assert b"secret" not in data


async def test_an_application_that_answers_nothing_is_an_error() -> None:
    async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    async with served(nothing) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(await rest(client)) == 500


async def test_a_large_answer_arrives_whole() -> None:
    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3000000")]})
        await send({"type": "http.response.body", "body": b"x" * 3_000_000})

    async with served(large) as client:
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = await rest(client)
    assert len(data.partition(b"\r\n\r\n")[2]) == 3_000_000


async def test_cancellation_resets_the_connection() -> None:
    client, server = memory.pair()
    entered = asyncio.Event()

    async def waiting(_scope: Any, _receive: Any, _send: Any) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve_http(server, waiting, state={}))
        await client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.wait()
        serving.cancel()
    assert serving.cancelled()
    with pytest.raises(ConnectionError):
        await rest(client)


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST / HTTP/1.0\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"abc",
        b"0\r\n\r\n",
    ]
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(PIECES | st.binary(max_size=30), max_size=12))
def test_any_bytes_end_in_answers_and_an_end(pieces: list[bytes]) -> None:
    async def told() -> bytes:
        async with served() as client:
            for piece in pieces:
                await client.write(piece)
            client.send_eof()
            return await rest(client)

    data = asyncio.run(told())
    assert data == b"" or data.startswith(b"HTTP/1.")
    assert b" 500 " not in data
