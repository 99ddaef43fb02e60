"""The auth service from afar: every operation as one awaitable call.

Belongs here: calls, their errors, and the watch stream as values. How a connection gets there is the dialer's business:
a Unix socket, loopback TCP, or any proxy of the cluster; TLS to the auth service itself is done here, end to end.
"""

import asyncio
import builtins
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from cryptography import x509
from pydantic import BaseModel, ValidationError

from monoport.access.identity import Destination, IdentityError, Kind, from_x509
from monoport.access.resources import Resource, parse_document, to_document
from monoport.audit.events import Event, from_json, to_json
from monoport.auth import messages
from monoport.auth.authorities import TrustedCas
from monoport.auth.keys import Credentials
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
MAX_EVENTS = 256  # events of one request, as the service takes them
BATCH_OCTETS = 512 * 1024  # octets of events in one request, half of what the service takes
MAX_LINE = 1024 * 1024  # octets of one change in the watch stream; a resource is at most 256 KiB


class AuthError(Failure):
    """The auth service refused; `code` is its fixed name for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AuthUnavailable(AuthError):
    """No answer from the auth service: it is down, unreachable, or not who it should be."""

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message)


@dataclass(frozen=True, slots=True)
class Put:
    """A resource is there, or is now as given."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Removed:
    """A resource is gone; `host_id` tells databases of one name apart."""

    kind: str
    name: str
    host_id: str = ""


@dataclass(frozen=True, slots=True)
class Cas:
    """The cluster's CAs are now these."""

    cas: TrustedCas


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything before was the snapshot; what follows are changes."""


Change = Put | Removed | Cas | Ready


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


class AuthClient:
    """Calls the auth service of one cluster.

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

    async def __aenter__(self) -> "AuthClient":
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

    # --- for everybody

    async def status(self) -> messages.Status:
        """The cluster, its CAs' pins, and who we are to it."""
        return await self._get("/v1/status", messages.Status)

    async def cas(self) -> TrustedCas:
        """The cluster's CA certificates and SSH CA keys."""
        return TrustedCas.from_json(await self._call("GET", "/v1/cas"))

    async def list(self, kind: str) -> builtins.list[Resource]:
        """Every resource of a kind that the caller may see."""
        answer = await self._call("GET", f"/v1/resources/{_part(kind)}")
        return [parse_document(document) for document in answer["resources"]]

    async def get(self, kind: str, name: str) -> Resource:
        """One resource; raises AuthError `not_found`."""
        return parse_document(await self._call("GET", f"/v1/resources/{_part(kind)}/{_part(name)}"))

    async def create(self, resource: Resource | Mapping[str, Any], force: bool = False) -> Resource:
        """Stores a resource; raises AuthError `exists` unless `force`."""
        query = "?force=true" if force else ""
        return parse_document(await self._call("POST", f"/v1/resources{query}", _document(resource)))

    async def delete(self, kind: str, name: str) -> None:
        """Removes a resource; raises AuthError `not_found`."""
        await self._call("DELETE", f"/v1/resources/{_part(kind)}/{_part(name)}")

    # --- for users

    async def reissue(
        self,
        destination: Destination | None,
        ttl: timedelta | None,
        public_key: str,
        ssh_public_key: str | None = None,
    ) -> messages.UserCertificates:
        """A narrower certificate for the caller, which never outlives the login.

        Args:
            destination: the one resource it is for; None keeps the present one.
            ttl: wanted length; None for as long as the login.
            public_key: SPKI PEM. ssh_public_key: the same key as an OpenSSH line, if an SSH certificate is wanted.
        """
        route = None
        if destination is not None:
            names = ("kind", "name", "protocol", "user", "database")
            route = {name: getattr(destination, name) for name in names}
        request = {"public_key": public_key, "ssh_public_key": ssh_public_key, "destination": route, "ttl": _s(ttl)}
        return await self._post("/v1/reissue", request, messages.UserCertificates)

    # --- for proxies

    async def authenticate(
        self,
        user: str,
        password: str,
        *,
        public_key: str,
        ssh_public_key: str,
        ttl: timedelta | None = None,
        source: str = "",
    ) -> messages.UserCertificates:
        """A first login; raises AuthError `wrong_password` or `login_locked`, the same for unknown users.

        Args:
            public_key: SPKI PEM of a key that the user made. ssh_public_key: the same as an OpenSSH line.
            ttl: wanted length; None for the longest that the roles allow. source: the user's IP address.
        """
        request = {
            "user": user,
            "password": password,
            "public_key": public_key,
            "ssh_public_key": ssh_public_key,
            "ttl": _s(ttl),
            "source": source,
        }
        return await self._post("/v1/authenticate", request, messages.UserCertificates)

    async def join(
        self,
        token: str,
        *,
        name: str,
        roles: Sequence[str],
        public_key: str,
        ssh_public_key: str,
        names: Sequence[str] = (),
        source: str = "",
    ) -> messages.HostCertificates:
        """A host's first certificates; raises AuthError `token_unknown`, `token_expired` or `token_type`."""
        request = {
            "token": token,
            "name": name,
            "roles": list(roles),
            "public_key": public_key,
            "ssh_public_key": ssh_public_key,
            "names": list(names),
            "source": source,
        }
        return await self._post("/v1/join", request, messages.HostCertificates)

    # --- for hosts

    async def renew_host(
        self, public_key: str, ssh_public_key: str, names: Sequence[str] | None = None
    ) -> messages.HostCertificates:
        """The next certificates of this host; `names` None keeps the present ones, others only a proxy may change."""
        wanted = None if names is None else list(names)
        request = {"public_key": public_key, "ssh_public_key": ssh_public_key, "names": wanted}
        return await self._post("/v1/renew", request, messages.HostCertificates)

    async def heartbeat(self, resource: Resource) -> None:
        """Says that a node or database of this host is there; to be repeated well within `inventory.TTL`."""
        await self._call("POST", "/v1/heartbeat", _document(resource), again=True)

    async def database_client_certificate(
        self,
        public_key: str,
        user: str,
        ttl: timedelta | None = None,
        *,
        certificate: str,
        name: str,
        database: str = "",
    ) -> messages.Certificate:
        """A client certificate of the database CA (CN = database user) for a session of the user passed along.

        Args:
            public_key: SPKI PEM of the agent's key. user: the database user.
            certificate: the user's X.509 certificate, PEM, as the preface brought it.
            name: the database's resource name, which this agent must have registered. database: its inner name.
        """
        request = {
            "public_key": public_key,
            "user": user,
            "ttl": _s(ttl),
            "certificate": certificate,
            "name": name,
            "database": database,
        }
        return await self._post("/v1/certificates/database-client", request, messages.Certificate)

    async def emit(self, events: Iterable[Event]) -> None:
        """Hands audit events over; on return they are durable. Events handed over twice are kept once."""
        batch: builtins.list[dict[str, object]] = []
        room = BATCH_OCTETS
        for event in events:
            document = to_json(event)
            size = len(json.dumps(document))
            if batch and (size > room or len(batch) >= MAX_EVENTS):
                await self._call("POST", "/v1/events", {"events": batch}, again=True)
                batch, room = [], BATCH_OCTETS
            batch.append(document)
            room -= size
        if batch:
            await self._call("POST", "/v1/events", {"events": batch}, again=True)

    async def watch(self) -> AsyncGenerator[Change, None]:
        """The snapshot of roles, locks, nodes, databases and CAs, then `Ready`, then every change until the end.

        Raises:
            AuthUnavailable: the stream broke or fell silent; call again for a new snapshot.
        """
        timeout = httpx.Timeout(WATCH_SILENCE, connect=DIAL_SECONDS)
        try:
            async with self._http.stream("GET", "/v1/watch", timeout=timeout) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, await _bounded(response))
                async with aclosing(_lines(response)) as lines:
                    async for line in lines:
                        change = _change(json.loads(line))
                        if change is not None:
                            yield change
        except (OSError, ValueError, KeyError) as error:
            raise AuthUnavailable(f"the watch on the auth service of {self.cluster} broke: {error}") from error
        raise AuthUnavailable(f"the auth service of {self.cluster} ended the watch")

    # --- for administrators

    async def events_list(
        self, limit: int = 100, before: str | None = None, event_type: str | None = None
    ) -> messages.EventPage:
        """Audit events, newest first; `before` is a page's `next`."""
        query = httpx.QueryParams({"limit": limit})
        query = query.set("before", before) if before else query
        query = query.set("type", event_type) if event_type else query
        answer = await self._call("GET", f"/v1/events?{query}")
        return messages.EventPage(tuple(from_json(one) for one in answer["events"]), answer["next"])

    async def users_list(self) -> builtins.list[Resource]:
        """Local users, without anything secret."""
        return await self.list("user")

    async def users_add(
        self, name: str, roles: Sequence[str], traits: Mapping[str, Sequence[str]], password: str
    ) -> None:
        """Adds a local user."""
        body = {"name": name, "roles": list(roles), "traits": _lists(traits), "password": password}
        await self._call("POST", "/v1/users", body)

    async def users_remove(self, name: str) -> None:
        """Removes a user; a lock ends their sessions for as long as their certificates last."""
        await self.delete("user", name)

    async def users_reset(self, name: str, password: str) -> None:
        """Sets a new password and lifts the lock after failed logins."""
        await self._call("POST", f"/v1/users/{_part(name)}/reset", {"password": password})

    async def tokens_list(self) -> builtins.list[messages.Token]:
        """Join tokens that are still good; their values are not among what is kept."""
        answer = await self._call("GET", "/v1/tokens")
        return [messages.Token.model_validate(token) for token in answer["tokens"]]

    async def tokens_add(
        self, types: Sequence[str], ttl: timedelta | None = None, value: str | None = None
    ) -> messages.MadeToken:
        """Makes a join token; its value is in the answer and nowhere else."""
        body = {"types": list(types), "ttl": _s(ttl), "value": value}
        return await self._post("/v1/tokens", body, messages.MadeToken)

    async def tokens_remove(self, token: str) -> None:
        """Removes a token, by its id or its value."""
        await self._call("POST", "/v1/tokens/remove", {"token": token})

    async def sign_user(
        self, user: str, public_key: str, ssh_public_key: str, ttl: timedelta | None = None
    ) -> messages.UserCertificates:
        """User certificates without a login."""
        body = {"user": user, "public_key": public_key, "ssh_public_key": ssh_public_key, "ttl": _s(ttl)}
        return await self._post("/v1/certificates/user", body, messages.UserCertificates)

    async def sign_database_server(
        self, hosts: Sequence[str], public_key: str, ttl: timedelta | None = None
    ) -> messages.Certificate:
        """A certificate for a database server, of the CA that agents verify it against."""
        body = {"hosts": list(hosts), "public_key": public_key, "ttl": _s(ttl)}
        return await self._post("/v1/certificates/database-server", body, messages.Certificate)

    # --- how

    def _current(self) -> Credentials:
        return self._credentials() if callable(self._credentials) else self._credentials

    async def _connect(self) -> Stream:
        credentials = self._current()
        context = credentials.context()
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
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
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


def _change(line: Mapping[str, Any]) -> Change | None:
    match line["type"]:
        case "put":
            return Put(parse_document(line["document"]))
        case "removed":
            return Removed(line["kind"], line["name"], line.get("host_id", ""))
        case "cas":
            return Cas(TrustedCas.from_json(line["cas"]))
        case "ready":
            return Ready()
        case _:  # a sign of life, or something that a newer service says
            return None


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


def _document(resource: Resource | Mapping[str, Any]) -> Any:
    if isinstance(resource, Mapping):
        return dict(resource)
    return to_document(resource)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _part(text: str) -> str:
    return quote(text, safe="")


def _lists(traits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in traits.items()}


def _s(ttl: timedelta | None) -> int | None:
    return None if ttl is None else int(ttl.total_seconds())
