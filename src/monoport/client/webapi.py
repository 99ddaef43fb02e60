"""HTTP requests to the proxy's web and bootstrap names.

Belongs here: framing (h11), limits, and what the answers mean. Does not belong here: TLS and whom to trust.
"""

import asyncio
import json
from typing import Any

import h11

from monoport import __version__
from monoport.errors import Failure
from monoport.net.stream import Stream

MAX_ANSWER = 1 << 20  # bytes; the largest answer we ask for is a login with its CAs, under 32 KiB
TIMEOUT = 30.0  # seconds for one request; a login costs the server an argon2 computation under load


class WebApi:
    """Requests one after the other over one connection."""

    def __init__(self, stream: Stream, host: str) -> None:
        self._stream, self._host = stream, host
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=65_536)  # bytes of one answer's head

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            Failure: no such answer, in one line.
        """
        return await self._bounded("GET", path, None)

    async def post(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers another.

        Raises:
            Failure: refused (with the server's reason) or no such answer.
        """
        return await self._bounded("POST", path, json.dumps(value).encode())

    async def _bounded(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT):
                status, answer = await self._exchange(method, path, body)
        except TimeoutError:
            raise Failure(f"{self._host} did not answer {path} within {TIMEOUT:g} s") from None
        except (h11.ProtocolError, ConnectionError) as error:
            raise Failure(f"{self._host} broke off while answering {path}: {error}") from None
        return _meaning(self._host, path, status, answer)

    async def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        headers = [("Host", self._host), ("User-Agent", f"tsh/{__version__}"), ("Accept", "application/json")]
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        await self._send(h11.Request(method=method, target=path, headers=headers))
        if body is not None:
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())
        status, answer = 0, bytearray()
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
                if len(answer) > MAX_ANSWER:
                    raise Failure(f"{self._host} answered {path} with more than {MAX_ANSWER} bytes")
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("no answer")
        return status, bytes(answer)

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.write(data)

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.read())
        return event


def _meaning(host: str, path: str, status: int, answer: bytes) -> dict[str, Any]:
    try:
        value = json.loads(answer)
    except ValueError:
        value = None
    if status == 200 and isinstance(value, dict):
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        raise Failure(error["message"])
    if status == 200:
        raise Failure(f"{host} answered {path} with something other than a JSON object: is it a monoport proxy?")
    raise Failure(f"{host} answered {path} with status {status}: is it a monoport proxy?")
