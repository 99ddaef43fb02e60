"""HTTP requests over a Stream: what httpx needs to speak through any connection that we can dial.

Belongs here: the bridge between httpx's connection pool and `net.Stream`. What is asked, `auth.client` knows; which way
leads to the auth service, the dialer knows.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, cast

import httpcore
import httpx

from monoport.net.stream import Stream

Dial = Callable[[], Awaitable[Stream]]

MAX_CONNECTIONS = 16  # a watch, heartbeats, and a dozen requests at once; more of them wait
KEEPALIVE_SECONDS = 30.0  # less than the server's idle limit, so that we end a connection before it does
CHUNK = 16_384  # bytes sent under one time limit


class StreamTransport(httpx.AsyncBaseTransport):
    """Sends httpx requests over streams from a dialer and keeps a few of them open.

    Args:
        dial: opens one connection on which HTTP/1.1 can be spoken at once; raises ConnectionError.
    """

    def __init__(self, dial: Dial) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=_Backend(dial),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request over a pooled connection; raises ConnectionError or TimeoutError."""
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=cast(AsyncIterable[bytes], request.stream),
                    extensions=request.extensions,
                )
            )
        except httpcore.TimeoutException as error:
            raise TimeoutError(str(error) or "no answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(cast(AsyncIterable[bytes], response.stream), response.aclose),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: AsyncIterable[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self._content, self._close = content, close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._content:
                yield chunk
        except httpcore.TimeoutException as error:
            raise TimeoutError(str(error) or "no more of the answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        await self._close()


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        # Host and port are those of the URL and mean nothing here: there is one auth service, and the dialer knows it.
        try:
            async with asyncio.timeout(timeout):
                return _Connection(await self._dial())
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error) or f"no connection within {timeout:g} s") from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Connection(httpcore.AsyncNetworkStream):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._stream.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(f"no answer within {timeout:g} s") from error
        except ConnectionError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            for start in range(0, len(buffer), CHUNK):
                async with asyncio.timeout(timeout):
                    await self._stream.write(buffer[start : start + CHUNK])
        except TimeoutError as error:
            raise httpcore.WriteTimeout(f"the request could not be sent within {timeout:g} s") from error
        except ConnectionError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        # The pool asks this of idle connections: one that died meanwhile, as auth restarted, is not used again.
        return self._stream.lost if info == "is_readable" else None
