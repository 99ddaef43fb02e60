"""Calling the auth service: a connection, one request, one answer or one error.

Belongs here: dialling, TLS end to end, who may answer, retries, bounds on answers. What can be called is `client`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from cryptography import x509
from pydantic import BaseModel, ValidationError

from monoport.access.identity import IdentityError, Kind, from_x509
from monoport.auth.keys import Credentials, auth_alpn
from monoport.auth.transport import Dial, StreamTransport
from monoport.errors import Failure
from monoport.net import sockets
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls

Answer = TypeVar("Answer", bound=BaseModel)

DIAL_SECONDS = 15.0  # connecting and TLS; a proxy between may have to wait for the auth service too
ANSWER_SECONDS = 30.0  # a login may wait for others' password checks
WATCH_SILENCE = 30.0  # the service says something every 10 s; three missed ones mean that it is gone
MAX_ANSWER = 16 * 1024 * 1024  # octets; ten thousand nodes fit, an endless answer does not
MAX_LINE = 1024 * 1024  # octets of one line of a stream; a resource is at most 256 KiB


class AuthError(Failure):
    """The auth service refused; `code` is its fixed name for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AuthUnavailable(AuthError):
    """No answer from the auth service: it is down, unreachable, or not who it should be."""

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message)


def unix(path: str | Path) -> Dial:
    """Dials the auth service beside us, through its socket file."""

    async def dial() -> Stream:
        return await sockets.connect_unix(str(path))

    return dial


def tcp(host: str, port: int) -> Dial:
    """Dials an auth service's own port, or a proxy's one port: TLS names the cluster, the proxy passes it on."""

    async def dial() -> Stream:
        return await sockets.connect(host, port, DIAL_SECONDS)

    return dial


class Calls:
    """Requests to the auth service of one cluster.

    Args:
        dial: opens a raw connection that leads to the auth service; TLS comes on top of it, here.
        credentials: what we show and whom we believe, or a function that gives the current ones, asked anew for every
            connection: a renewed certificate is used without a new client.
    """

    def __init__(self, dial: Dial, credentials: Credentials | Callable[[], Credentials]) -> None:
        self._dial = dial
        self._credentials = credentials
        self._http = httpx.AsyncClient(
            transport=StreamTransport(self._connect),
            base_url="http://auth",  # TLS is below, in the stream
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=DIAL_SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every connection."""
        await self._http.aclose()

    @property
    def cluster(self) -> str:
        """The cluster whose auth service this calls."""
        return self._current().cluster

    def _current(self) -> Credentials:
        return self._credentials() if callable(self._credentials) else self._credentials

    async def _connect(self) -> Stream:
        credentials = self._current()
        context = credentials.context(auth_alpn(credentials.cluster))
        stream = await self._dial()
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                secure = await connect_tls(stream, context, server_hostname=credentials.cluster)
        except BaseException:
            stream.abort()
            raise
        try:
            _check_server(secure.peer_certificate, credentials)
        except BaseException:
            secure.abort()
            raise
        return secure

    async def _get(self, path: str, shape: type[Answer]) -> Answer:
        return _shaped(shape, await self._call("GET", path))

    async def _post(self, path: str, body: object, shape: type[Answer]) -> Answer:
        return _shaped(shape, await self._call("POST", path, body))

    async def _call(self, method: str, path: str, body: object = None, again: bool = False) -> Any:
        """One request; once more if a connection that we had kept turned out to be dead and repeating is harmless."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content is not None and content is not body else {}
        for last in (False, True):
            try:
                async with self._http.stream(method, path, content=content, headers=headers) as response:
                    data = await _bounded(response)
                break
            except (OSError, TimeoutError) as error:
                if last or isinstance(error, TimeoutError) or not (again or method == "GET"):
                    message = f"the auth service of {self.cluster} does not answer: {_reason(error)}"
                    raise AuthUnavailable(message) from error
        else:
            raise AssertionError("the second try returned neither an answer nor an error")
        if response.status_code >= httpx.codes.BAD_REQUEST:
            raise _refusal(response.status_code, data)
        try:
            return json.loads(data) if data else None
        except ValueError as error:
            raise AuthUnavailable(f"the auth service of {self.cluster} answered with what is no JSON") from error

    async def _octets(self, path: str) -> AsyncGenerator[bytes, None]:
        """The octets of a large answer as they come; raises AuthError, and AuthUnavailable where it breaks."""
        try:
            async with self._http.stream("GET", path) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, await _bounded(response))
                async for chunk in response.aiter_raw():
                    yield chunk
        except OSError as error:
            message = f"the auth service of {self.cluster} does not answer: {_reason(error)}"
            raise AuthUnavailable(message) from error

    async def _stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """The lines of an endless answer; raises AuthUnavailable when it breaks, ends or falls silent."""
        timeout = httpx.Timeout(WATCH_SILENCE, connect=DIAL_SECONDS)
        try:
            async with self._http.stream("GET", path, timeout=timeout) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, await _bounded(response))
                async with aclosing(_lines(response)) as lines:
                    async for line in lines:
                        yield line
        except (OSError, ValueError) as error:
            raise AuthUnavailable(f"the watch on the auth service of {self.cluster} broke: {error}") from error
        raise AuthUnavailable(f"the auth service of {self.cluster} ended the watch")


def _check_server(certificate: bytes | None, credentials: Credentials) -> None:
    """The peer must be an auth service: proxies carry the cluster's name in their certificates as well."""
    if certificate is None:
        raise ConnectionError("the auth service showed no certificate")
    try:
        identity = from_x509(x509.load_der_x509_certificate(certificate), credentials.cas)
    except (IdentityError, ValueError) as error:
        raise ConnectionError(f"the auth service's {error}") from error
    if identity.kind is not Kind.HOST or "auth" not in identity.roles:
        raise ConnectionError(f"{identity} answered, which is not an auth service")


async def _bounded(response: httpx.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_ANSWER:
            raise AuthUnavailable(f"the auth service's answer is larger than {MAX_ANSWER} octets")
    return bytes(data)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    rest = bytearray()
    async for chunk in response.aiter_raw():
        *whole, last = (bytes(rest) + chunk).split(b"\n")
        for line in whole:
            yield line
        if len(last) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} octets")
        rest = bytearray(last)


def _refusal(status: int, data: bytes) -> AuthError:
    try:
        error = json.loads(data)["error"]
        return AuthError(str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return AuthError("unavailable", f"the auth service answered with HTTP status {status}")


def _shaped(shape: type[Answer], data: Any) -> Answer:
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AuthUnavailable(f"the auth service's answer is not understood: {where}: {first['msg']}") from error


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
