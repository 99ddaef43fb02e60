"""The auth service from afar: every operation as one awaitable call.

Belongs here: what can be called, and its arguments. How a call is made is `calls`; which way a connection takes is the
dialer's business: a Unix socket, loopback TCP, or any proxy of the cluster.
"""

import builtins
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx

from monoport.access.identity import Destination
from monoport.access.resources import Resource, parse_document, to_document
from monoport.audit.events import Event, from_json
from monoport.auth import messages
from monoport.auth.authorities import TrustedCas
from monoport.auth.calls import AuthError, AuthUnavailable, Calls, tcp, unix
from monoport.auth.changes import Cas, Change, Put, Ready, Removed, parse_change
from monoport.errors import Failure

__all__ = ["AuthClient", "AuthError", "AuthUnavailable", "Cas", "Change", "Put", "Ready", "Removed", "tcp", "unix"]

MAX_EVENTS = 256  # events of one request, as the service takes them
BATCH_OCTETS = 512 * 1024  # octets of events in one request, half of what the service takes


class AuthClient(Calls):
    """Calls the auth service of one cluster; see `Calls` for its arguments."""

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
        connection: str = "",
    ) -> messages.UserCertificates:
        """A first login; raises AuthError `wrong_password` or `login_locked`, the same for unknown users.

        Args:
            public_key: SPKI PEM of a key that the user made. ssh_public_key: the same as an OpenSSH line.
            ttl: wanted length; None for the longest that the roles allow. source: the user's IP address.
            connection: its id at the proxy.
        """
        request = {
            "user": user,
            "password": password,
            "public_key": public_key,
            "ssh_public_key": ssh_public_key,
            "ttl": _s(ttl),
            "source": source,
            "connection": connection,
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
        connection: str = "",
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
            "connection": connection,
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

    async def heartbeat(self, resource: Resource, *, first: bool = False) -> None:
        """Says that a node or database of this host is there; to be repeated well within `inventory.TTL`.

        Args:
            first: nothing was said of it since this process started, so that it may be back after its removal.
        """
        path = "/v1/heartbeat?first=true" if first else "/v1/heartbeat"
        await self._call("POST", path, _document(resource), again=True)

    async def database_client_certificate(
        self,
        public_key: str,
        user: str,
        ttl: timedelta | None = None,
        *,
        certificate: str,
        name: str,
        database: str = "",
        connection: str = "",
    ) -> messages.Certificate:
        """A client certificate of the database CA (CN = database user) for a session of the user passed along.

        Args:
            public_key: SPKI PEM of the agent's key. user: the database user.
            certificate: the user's X.509 certificate, PEM, as the preface brought it.
            name: the database's resource name, which this agent must have registered. database: its inner name.
            connection: for which connection, for the audit log.
        """
        request = {
            "public_key": public_key,
            "user": user,
            "ttl": _s(ttl),
            "certificate": certificate,
            "name": name,
            "database": database,
            "connection": connection,
        }
        return await self._post("/v1/certificates/database-client", request, messages.Certificate)

    async def emit(self, events: Iterable[Event]) -> None:
        """Hands audit events over; on return they are durable. Events handed over twice are kept once."""
        await self.emit_payloads([event.payload for event in events])

    async def emit_payloads(self, payloads: Sequence[bytes]) -> None:
        """As `emit`, with events as their JSON, which goes as it is."""
        batch: builtins.list[bytes] = []
        room = BATCH_OCTETS
        for payload in payloads:
            if batch and (len(payload) > room or len(batch) >= MAX_EVENTS):
                await self._hand_over(batch)
                batch, room = [], BATCH_OCTETS
            batch.append(payload)
            room -= len(payload) + 1
        if batch:
            await self._hand_over(batch)

    async def _hand_over(self, payloads: Sequence[bytes]) -> None:
        body = b'{"events":[' + b",".join(payloads) + b"]}"
        await self._call("POST", "/v1/events", body, again=True)

    async def watch(self) -> AsyncGenerator[Change, None]:
        """The snapshot of roles, locks, nodes, databases and CAs, then `Ready`, then every change until the end.

        Raises:
            AuthUnavailable: the stream broke or fell silent; call again for a new snapshot.
        """
        async with aclosing(self._stream("/v1/watch")) as lines:
            async for line in lines:
                try:
                    change = parse_change(json.loads(line))
                except (Failure, ValueError, KeyError) as error:
                    raise AuthUnavailable(f"the watch said what is not understood: {error}") from error
                if change is not None:
                    yield change

    # --- recordings

    async def recording_offer(self, recording: str, size: int, sha256: str, seconds: float) -> messages.RecordingState:
        """How much of a recording of this node the service has; raises AuthError `session_unknown`, `exists`, `busy`.

        Args:
            recording: the session's id. size: octets. sha256: of all of them, hex. seconds: its length.
        """
        body = {"size": size, "sha256": sha256, "seconds": seconds}
        answer = await self._call("POST", f"/v1/recordings/{_part(recording)}", body, again=True)
        return messages.RecordingState.model_validate(answer)

    async def recording_append(self, recording: str, offset: int, data: bytes) -> messages.RecordingState:
        """Sends the next part; raises AuthError `conflict` or `not_found`: offer it again to learn what is there."""
        path = f"/v1/recordings/{_part(recording)}/parts/{offset}"
        return messages.RecordingState.model_validate(await self._call("PUT", path, data))

    async def recording_complete(
        self, recording: str, size: int, sha256: str, seconds: float
    ) -> messages.RecordingState:
        """Says that all parts are sent; on return the service keeps them, verified. Raises AuthError `bad_request`."""
        body = {"size": size, "sha256": sha256, "seconds": seconds}
        answer = await self._call("POST", f"/v1/recordings/{_part(recording)}/complete", body, again=True)
        return messages.RecordingState.model_validate(answer)

    async def recordings_list(
        self, *, user: str = "", node: str = "", since: str = "", limit: int = 100, before: str | None = None
    ) -> messages.RecordingPage:
        """Recordings that the caller may see, those that began last first; `before` is a page's `next`."""
        query = httpx.QueryParams({"limit": limit, "user": user, "node": node, "since": since})
        query = query.set("before", before) if before else query
        return await self._get(f"/v1/recordings?{query}", messages.RecordingPage)

    async def recording(self, recording: str) -> messages.Recording:
        """What is known of one recording; raises AuthError `not_found`."""
        return await self._get(f"/v1/recordings/{_part(recording)}", messages.Recording)

    def recording_content(self, recording: str) -> AsyncGenerator[bytes, None]:
        """The octets of a recording, as asciicast; raises AuthError `not_found`."""
        return self._octets(f"/v1/recordings/{_part(recording)}/content")

    async def recording_remove(self, recording: str) -> None:
        """Deletes a recording for good."""
        await self._call("DELETE", f"/v1/recordings/{_part(recording)}")

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

    async def databases_allow(self, name: str) -> None:
        """Lets agents that run register a database again that was removed; raises AuthError if it was not."""
        await self._call("POST", f"/v1/databases/{_part(name)}/allow")

    async def users_update(
        self, name: str, roles: Sequence[str] | None = None, traits: Mapping[str, Sequence[str]] | None = None
    ) -> bool:
        """Changes a user's roles, if given, and each trait that is named; an empty one is removed.

        Returns whether certificates from before are locked, so that the user has to sign in again.
        """
        body = {"roles": None if roles is None else list(roles), "traits": _lists(traits or {})}
        return bool((await self._call("POST", f"/v1/users/{_part(name)}/update", body))["locked"])

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
        self,
        types: Sequence[str],
        ttl: timedelta | None = None,
        value: str | None = None,
        *,
        nodes: Sequence[str] = (),
        databases: Sequence[str] = (),
    ) -> messages.MadeToken:
        """Makes a join token; its value is in the answer and nowhere else.

        Args: nodes, databases: the only names that its hosts may serve, even those that others own.
        """
        body = {
            "types": list(types),
            "ttl": _s(ttl),
            "value": value,
            "nodes": list(nodes),
            "databases": list(databases),
        }
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


def _document(resource: Resource | Mapping[str, Any]) -> Any:
    if isinstance(resource, Mapping):
        return dict(resource)
    return to_document(resource)


def _part(text: str) -> str:
    return quote(text, safe="")


def _lists(traits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in traits.items()}


def _s(ttl: timedelta | None) -> int | None:
    return None if ttl is None else int(ttl.total_seconds())
