"""HTTP/1.1 over one Stream: an ASGI application answers the requests of one connection.

Belongs here: framing (h11), deadlines, size limits and the bridge to ASGI, for every server that monoport has
(web, bootstrap, the auth API). Does not belong here: what is served, TLS, who may call, HTTP/2.
See docs/decisions/0004-http-serving.md for why this is not a web server library.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11
import structlog

from monoport.net.stream import Stream, linger

Message = MutableMapping[str, Any]
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Any]

_log = structlog.get_logger()

_READ = 65_536  # bytes asked of the stream at once: one whole small request with its body
_PIPELINED = 65_536  # bytes a peer may send ahead while its last answer is being written; then we stop reading
_PIECE = 65_536  # bytes written under one deadline, so that a large answer may take as long as it moves


@dataclass(frozen=True, slots=True)
class Limits:
    """What one HTTP connection may cost: seconds and bytes."""

    header_seconds: float = 15.0  # a whole request head, from its first byte (the first head: from the start)
    header_bytes: int = 16_384  # request line and headers; browsers with many cookies stay below 8 KiB
    body_seconds: float = 30.0  # a whole request body
    body_bytes: int = 65_536  # largest request we take is a join with a few public keys: under 16 KiB
    idle_seconds: float = 60.0  # between two requests; more than the 30 s in which browsers reuse connections
    write_seconds: float = 30.0  # a peer that reads nothing for this long is gone
    requests: int = 1_000  # per connection, so that load spreads again over listeners and certificates


DEFAULT = Limits()


class _Refused(Exception):
    """The request cannot be taken: answer with this status and end the connection."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Gone(Exception):
    """The peer ended the connection, or never asked for anything; nobody is there to be answered."""


async def serve_http(
    stream: Stream,
    app: App,
    *,
    state: Mapping[str, Any],
    limits: Limits = DEFAULT,
    client: tuple[str, int] | None = None,
    connection: str = "",
) -> None:
    """Answer every request of one connection with an ASGI application, then end the connection.

    A request's body is read whole, within its limits, before the application sees the request: no application
    ever waits for a slow peer, and `receive()` afterwards reports only that the peer went away.

    Args:
        stream: the connection, TLS already done; closed on return, reset on cancellation or a broken answer.
        app: an ASGI 3 application; lifespan is not called.
        state: becomes every request's `scope["state"]` (a fresh shallow copy per request).
        limits: seconds and bytes.
        client: the peer's host and port, for `scope["client"]`.
        connection: its id, for the log; "" where it has none, as on a Unix socket.

    Source: RFC 9112 (HTTP/1.1), ASGI HTTP specification 2.3.
    """
    log = _log.bind(connection=connection) if connection else _log
    async with stream:
        try:
            await _Connection(stream, app, dict(state), limits, client, log=log).run()
        except (ConnectionError, TimeoutError) as error:
            log.debug("http connection lost", error=str(error) or type(error).__name__)
            stream.abort()


class _Connection:
    """The requests of one connection, one after the other."""

    def __init__(
        self,
        stream: Stream,
        app: App,
        state: dict[str, Any],
        limits: Limits,
        client: tuple[str, int] | None,
        *,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.log = log
        self._stream, self._app, self._state, self._limits, self._client = stream, app, state, limits, client
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._ended = False  # the peer sent its end

    async def run(self) -> None:
        for number in range(1, self._limits.requests + 1):
            try:
                request = await self._head(first=number == 1)
                body = await self._body(request)
            except _Gone:
                return
            except _Refused as refused:
                await self._refuse(refused)
                return
            last = number == self._limits.requests
            exchange = _Exchange(self, request, body, last)
            if not await exchange.run(self._app, self._scope(request)):
                self._stream.abort()
                return
            if last or self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                await self._linger()
                return
            self._h11.start_next_cycle()

    async def _head(self, first: bool) -> h11.Request:
        limits = self._limits
        waited = limits.header_seconds if first else limits.idle_seconds
        try:
            if not self._h11.trailing_data[0]:
                async with asyncio.timeout(waited):
                    await self._feed()
            async with asyncio.timeout(limits.header_seconds):
                event = await self._next()
        except TimeoutError:
            if not self._h11.trailing_data[0]:
                raise _Gone from None
            raise _Refused(408, "timeout", f"no whole request head in {limits.header_seconds:g} s") from None
        if isinstance(event, h11.ConnectionClosed):
            raise _Gone
        assert isinstance(event, h11.Request)
        _check(event)
        return event

    async def _body(self, request: h11.Request) -> bytes:
        limits, body = self._limits, bytearray()
        declared = dict(request.headers).get(b"content-length")
        if declared is not None and int(declared) > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        if self._h11.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            async with asyncio.timeout(limits.body_seconds):
                while not isinstance(event := await self._next(), h11.EndOfMessage):
                    if not isinstance(event, h11.Data):
                        raise _Gone
                    body += event.data
                    if len(body) > limits.body_bytes:
                        raise _too_large(limits.body_bytes)
        except TimeoutError:
            message = f"{len(body)} bytes of the body in {limits.body_seconds:g} s and not its end"
            raise _Refused(408, "timeout", message) from None
        return bytes(body)

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event that is not NEED_DATA."""
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                await self._feed()
        except h11.RemoteProtocolError as error:
            if self._ended:
                raise _Gone from None
            raise _Refused(error.error_status_hint, "bad_request", f"not a valid HTTP request: {error}") from None
        return event

    async def _feed(self) -> None:
        if self._ended:
            raise _Gone
        data = await self._stream.read(_READ)
        self._ended = not data
        self._h11.receive_data(data)

    async def gone(self) -> None:
        """Return when the peer has ended its side; what it sends meanwhile waits for its turn."""
        while not self._ended:
            if len(self._h11.trailing_data[0]) >= _PIPELINED:
                await asyncio.get_running_loop().create_future()  # until the answer is done and we are cancelled
            await self._feed()

    async def send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        for start in range(0, len(data or b""), _PIECE):
            async with asyncio.timeout(self._limits.write_seconds):
                await self._stream.write((data or b"")[start : start + _PIECE])

    async def _refuse(self, refused: _Refused) -> None:
        if self._h11.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        await self.answer_error(refused.status, refused.code, str(refused))
        await self._linger()

    async def answer_error(self, status: int, code: str, message: str) -> None:
        """Answer without the application, and say that the connection ends."""
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        await self.send(h11.Response(status_code=status, headers=[*headers, _date()], reason=_reason(status)))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def _linger(self) -> None:
        """Say that we are done and take what is still under way, so that closing does not reset the answer."""
        linger(self._stream)
        await self._stream.wait_closed()

    def _scope(self, request: h11.Request) -> dict[str, Any]:
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # 2.3: frameworks watch receive() for the peer's end
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "https",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self._client,
            "server": None,
            "state": dict(self._state),
        }


class _Exchange:
    """One request and its answer, seen by the application through `receive` and `send`."""

    def __init__(self, connection: _Connection, request: h11.Request, body: bytes, last: bool) -> None:
        self._connection, self._request, self._last = connection, request, last
        self._body: bytes | None = body
        self._start: h11.Response | None = None  # sent with the first piece of the body
        self._started = self._done = False
        self._receiving = False  # the application waits in receive()

    async def run(self, app: App, scope: dict[str, Any]) -> bool:
        """Return whether the answer went out whole."""
        try:
            await app(scope, self._receive, self._send)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            self._connection.log.error("request failed", path=scope["path"], error=repr(error), exc_info=error)
            if self._started:
                return self._done
        if not self._started:
            await self._connection.answer_error(500, "internal", "the server failed to answer; its log says why")
            return True
        if self._receiving:
            self._connection.log.error("request left waiting for its peer", path=scope["path"])
        return self._done and not self._receiving

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        self._receiving = True
        try:
            await self._connection.gone()
        except (_Gone, ConnectionError):
            return {"type": "http.disconnect"}
        finally:
            self._receiving = False
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = self._response(message)
            return
        if message["type"] != "http.response.body" or self._done or (self._start is None and not self._started):
            raise RuntimeError(f"the application sent {message['type']!r} out of turn")
        if self._start is not None:
            start, self._start, self._started = self._start, None, True
            await self._connection.send(start)
        body = message.get("body", b"")
        if body and self._request.method != b"HEAD":
            await self._connection.send(h11.Data(data=bytes(body)))
        if not message.get("more_body", False):
            self._done = True
            await self._connection.send(h11.EndOfMessage())

    def _response(self, message: Message) -> h11.Response:
        headers = [*message.get("headers", []), _date()]
        if self._last:
            headers.append(("Connection", "close"))
        return h11.Response(status_code=message["status"], headers=headers, reason=_reason(message["status"]))


def _check(request: h11.Request) -> None:
    """Refuse what h11 lets through and we have no use for; each has been a way to smuggle requests."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise _Refused(505, "bad_request", "expected HTTP/1.1")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise _Refused(400, "bad_request", "Transfer-Encoding and Content-Length in one request")
    if not request.target.startswith(b"/"):
        raise _Refused(400, "bad_request", "the request target must be a path, as in GET /webapi/ping")


def _too_large(limit: int) -> _Refused:
    return _Refused(413, "too_large", f"the request body is larger than {limit} bytes")


def _date() -> tuple[str, str]:
    return ("Date", formatdate(time.time(), usegmt=True))


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
