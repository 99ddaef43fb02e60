"""What the auth service does for users, proxies and agents; each operation checks its caller first.

Belongs here: operations on certificates, presence and audit events. Managing what is stored is `administration`;
HTTP is `api`; which kind of caller may do what at all is the table in `permissions`.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

import monoport
from monoport import protocols
from monoport.access.decide import UNACCEPTED, DatabaseLogin, Denied, authorize, sight
from monoport.access.identity import Destination, Identity, IdentityError, Kind, from_x509
from monoport.access.locks import lock_for
from monoport.access.resources import Database, Resource, Role, User
from monoport.audit.events import Event, EventIds, make
from monoport.audit.outage import GAP, NotRecorded, Outage
from monoport.audit.segments import SpoolError
from monoport.auth import messages
from monoport.auth.authorities import TrustedCas
from monoport.auth.denials import Denials
from monoport.auth.eventlog import EventLog
from monoport.auth.hosts import HostRecords
from monoport.auth.inventory import Inventory
from monoport.auth.issue import Issuer
from monoport.auth.join import Hosts
from monoport.auth.narrowing import narrow
from monoport.auth.ownership import Ownership
from monoport.auth.permissions import Operation, may_emit, require
from monoport.auth.refusals import Forbidden, Invalid, LoginLocked, NotFound, Refusal, UserLocked, WrongPassword
from monoport.auth.removals import Removals
from monoport.auth.resources import Resources, Write
from monoport.auth.tokens import Tokens
from monoport.auth.users import Users
from monoport.errors import Failure
from monoport.protocols.description import Description

DATABASE_SESSION = timedelta(hours=1)  # a database client certificate serves to connect, not to stay connected
MAX_EVENTS = 256  # events of one request


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of."""

    cluster: str
    users: Users
    tokens: Tokens
    resources: Resources
    inventory: Inventory
    hosts: Hosts
    records: HostRecords
    ownership: Ownership
    removals: Removals
    issuer: Issuer
    events: EventLog
    outage: Outage
    now: Callable[[], datetime]
    protocols: Mapping[str, Description] = field(default_factory=protocols.table)


class Service:
    """The operations of one cluster's auth service.

    Args:
        parts: its rooms.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._ids = EventIds(parts.now)
        self.denials = Denials(self.record)
        self.logins: Counter[str] = Counter(ok=0, failed=0)  # first logins since the start of this process

    # --- for everybody

    async def status(self, caller: Identity) -> messages.Status:
        """The cluster and who is asking; counts are for administrators."""
        await self._require(caller, Operation.STATUS)
        counts: dict[str, int] = {}
        if "admin" in caller.roles and caller.kind is Kind.HOST:
            counts = {kind: len(await self.parts.resources.list(kind)) for kind in ("node", "db", "role", "lock")}
            counts["user"] = len(await self.parts.users.list())
            counts["token"] = len(await self.parts.tokens.list())
        return messages.Status(
            cluster=self.parts.cluster,
            version=monoport.__version__,
            ca_pins=self.parts.issuer.pins(),
            authorities=self.parts.issuer.describe(),
            caller=str(caller),
            roles=caller.roles,
            counts=counts,
        )

    async def cas(self, caller: Identity) -> TrustedCas:
        """The cluster's CAs."""
        await self._require(caller, Operation.CAS)
        return self.parts.issuer.trusted()

    # --- for proxies

    async def authenticate(self, caller: Identity, request: messages.Authenticate) -> messages.UserCertificates:
        """A first login; raises WrongPassword, LoginLocked, TooBusy, UserLocked."""
        await self._require(caller, Operation.AUTHENTICATE)
        self.require_log()
        try:
            certificates = await self._login(caller, request)
        except Exception:
            self.logins["failed"] += 1
            raise
        self.logins["ok"] += 1
        return certificates

    async def _login(self, caller: Identity, request: messages.Authenticate) -> messages.UserCertificates:
        source = _address(request.source)
        noted = {"connection": request.connection, "user": f"{request.user}@{self.parts.cluster}"}
        noted |= {"source": request.source, "proxy": caller.name}
        try:
            user = await self.parts.users.authenticate(request.user, request.password)
        except (WrongPassword, LoginLocked) as error:
            await self.record("user.login", **noted, success=False, reason=str(error))
            raise
        ttl = None if request.ttl is None else timedelta(seconds=request.ttl)
        held = _held(user.spec.roles, await self.parts.resources.roles())
        identity = self.parts.issuer.identity(user, held, ttl, source)
        locks = await self.parts.resources.locks()
        lock = lock_for(identity, locks, self.parts.now())
        if lock is not None:
            await self.record("user.login", **noted, success=False, reason=f"lock {lock.name}")
            raise UserLocked(f'the user "{user.name}" is locked')
        try:
            certificates = self.parts.issuer.user(identity, held, request.public_key, request.ssh_public_key)
        except Failure as error:
            await self.record("user.login", **noted, success=False, reason=f"right password, no certificate: {error}")
            raise
        expires = identity.expires.isoformat()
        await self.record("user.login", **noted, success=True, roles=list(identity.roles), expires=expires)
        return certificates

    async def join(self, caller: Identity, request: messages.Join) -> messages.HostCertificates:
        """A host's first certificates; raises TokenUnknown, TokenExpired, TokenType, NameOwned, Invalid."""
        await self._require(caller, Operation.JOIN)
        self.require_log()
        noted = {"connection": request.connection, "name": request.name, "roles": list(request.roles)}
        noted |= {"source": request.source, "proxy": caller.name}
        try:
            certificates = await self.parts.hosts.join(request)
        except Failure as error:
            code = error.code if isinstance(error, Refusal) else Invalid.code
            await self.record("host.join", **noted, success=False, code=code, reason=str(error))
            raise
        await self.record("host.join", **noted, success=True, host_id=certificates.host_id)
        return certificates

    # --- for users

    async def reissue(self, caller: Identity, request: messages.Reissue) -> messages.UserCertificates:
        """A narrower certificate: fewer rights than the caller has, for no longer than the login."""
        await self._require(caller, Operation.REISSUE)
        user = await self._user_of(caller)
        roles = await self.parts.resources.roles()
        ttl = None if request.ttl is None else timedelta(seconds=request.ttl)
        destination = await self._destination(caller, request.destination, roles)
        held = _held(user.spec.roles, roles)
        present = self.parts.issuer.identity(user, held, ttl, caller.login_ip)
        identity = narrow(caller, present, destination)
        ssh_key = request.ssh_public_key if destination is None else None
        return self.parts.issuer.user(identity, held, request.public_key, ssh_key)

    async def _user_of(self, caller: Identity) -> User:
        try:
            return await self.parts.users.get(caller.name)
        except NotFound:
            raise Forbidden(f'the user "{caller.name}" was removed', "no such user") from None

    async def _destination(
        self, caller: Identity, wanted: messages.RouteTo | None, roles: Mapping[str, Role]
    ) -> Destination | None:
        if wanted is None:
            return caller.destination
        if wanted.kind != "db":
            raise Invalid(f"certificates for {wanted.kind} are not served yet")
        database = await self._visible_database(caller, wanted.name, roles)
        if wanted.protocol and wanted.protocol != database.spec.protocol:
            raise Invalid(f'database "{wanted.name}" speaks {database.spec.protocol}, not {wanted.protocol}')
        if wanted.user:
            action = DatabaseLogin(wanted.user, None)  # which database, is a question of its own later
            if wanted.database:
                protocol, known = database.spec.protocol, self.parts.protocols
                action = protocols.login(protocol, wanted.user, wanted.database, known=known)
            locks = await self.parts.resources.locks()
            decision = authorize(caller, database, action, roles, locks, self.parts.now())
            if isinstance(decision, Denied):
                about = {"database": wanted.name, "db_user": wanted.user, "db_name": wanted.database}
                raise Forbidden(decision.reason, decision.rule, **about)
        return Destination("db", wanted.name, database.spec.protocol, wanted.user, wanted.database)

    async def _visible_database(self, caller: Identity, name: str, roles: Mapping[str, Role]) -> Database:
        locks, rule = await self.parts.resources.locks(), ""
        for resource in await self.parts.resources.list("db"):
            if resource.name == name and isinstance(resource, Database):
                seen = sight(caller, resource, roles, locks, self.parts.now())
                if not isinstance(seen, Denied):
                    return resource
                rule = seen.rule
                break
        raise NotFound(f'no database "{name}", or no role of yours allows it', rule, database=name)

    # --- for hosts

    async def renew(self, caller: Identity, request: messages.Renew) -> messages.HostCertificates:
        """The calling host's next certificates."""
        await self._require(caller, Operation.RENEW)
        return await self.parts.hosts.renew(caller, request)

    async def heartbeat(self, caller: Identity, resource: Resource, first: bool = False) -> None:
        """Notes that a node or database of the calling host is there; `first` since the host's start."""
        await self._require(caller, Operation.HEARTBEAT)
        await self.parts.inventory.heartbeat(caller, resource, first)

    async def watch(self, caller: Identity, write: Write) -> None:
        """Writes one watch; agents are not told of nodes and databases."""
        await self._require(caller, Operation.WATCH)
        sees_all = not {"proxy", "auth", "admin"}.isdisjoint(caller.roles)
        kinds = frozenset({"role", "lock", "node", "db"} if sees_all else {"role", "lock"})
        issuer = self.parts.issuer
        await self.parts.resources.follow(kinds, lambda: issuer.trusted().to_json(), issuer.prefix, write)

    async def emit(self, caller: Identity, events: Sequence[Event]) -> None:
        """Keeps a host's audit events, each once, marked with where they came from; durable on return."""
        await self._require(caller, Operation.EMIT)
        if len(events) > MAX_EVENTS:
            raise Invalid(f"{len(events)} events in one request, limit {MAX_EVENTS}")
        for event in events:
            if not may_emit(caller, event.type):
                raise Forbidden(f"events of type {event.type} are not this host's to emit", f"emitted by {caller}")
        now = self.parts.now()  # an event dated ahead would stand before all others for as long
        marked = [
            Event(event.id, min(event.time, now), event.type, {**event.fields, "host_id": caller.name})
            for event in events
        ]
        await self.parts.events.append(marked)

    async def database_client(self, caller: Identity, request: messages.DatabaseClient) -> messages.Certificate:
        """A database client certificate for a user's session, if their role allows it and the agent serves it."""
        await self._require(caller, Operation.DATABASE_CLIENT)
        about: dict[str, Any] = {"connection": request.connection, "database": request.name}
        about |= {"db_user": request.user, "db_name": request.database}
        user = self._passed_along(request.certificate, about)
        about["user"] = str(user)
        databases = await self.parts.resources.list("db")
        found = [one for one in databases if one.name == request.name and isinstance(one, Database)]
        own = next((one for one in found if one.spec.host_id == caller.name), None)
        if own is None:
            what = f'database "{request.name}" is not registered by this agent'
            raise Forbidden(what, f"asked by {caller}", **about)
        host = await self.parts.records.get(caller.name)
        await self.parts.ownership.require(host, "db", request.name, "database_client")
        action = protocols.login(own.spec.protocol, request.user, request.database, known=self.parts.protocols)
        roles, locks = await self.parts.resources.roles(), await self.parts.resources.locks()
        decision = authorize(user, own, action, roles, locks, self.parts.now())
        if isinstance(decision, Denied):
            raise Forbidden(decision.reason, decision.rule, **about)
        longest = DATABASE_SESSION if request.ttl is None else min(timedelta(seconds=request.ttl), DATABASE_SESSION)
        certificate = self.parts.issuer.database_client(
            request.public_key, request.user, request.name, min(decision.until, self.parts.now() + longest)
        )
        noted = {"host_id": caller.name, "expires": certificate.expires.isoformat()}
        await self.record("certificate.database_client", **about, **noted)
        return certificate

    def _passed_along(self, pem: str, about: Mapping[str, Any]) -> Identity:
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            user = from_x509(certificate, self.parts.issuer.trusted(), self.parts.now())
        except (IdentityError, ValueError) as error:
            what = f"the user's certificate is not accepted: {error}"
            raise Forbidden(what, UNACCEPTED, **about) from error
        if user.kind is not Kind.USER:
            raise Forbidden("database sessions are for users", f"certificate of {user}", **about)
        return user

    # --- how

    async def _require(self, caller: Identity, operation: Operation) -> None:
        require(caller, operation, await self.parts.resources.locks(), self.parts.now())

    async def record(self, event_type: str, **fields: Any) -> None:
        """Keeps one audit event of the auth service itself; raises NotRecorded, unless sessions go on without."""
        event = make(self._ids, event_type, fields)
        try:
            await self.parts.events.append([event])
        except SpoolError as error:
            self.parts.outage.failed(event, str(error))

    def require_log(self) -> None:
        """Raises NotRecorded while events cannot be kept: what is noted afterwards would have happened by then."""
        if self.parts.outage.refuses:
            raise NotRecorded

    async def keep_log(self) -> None:
        """Ends every time in which events cannot be kept as soon as possible, until cancelled."""
        events = self.parts.events

        async def keep(event: Event) -> None:
            await events.append([event])

        async def gap(lost: int) -> None:
            await keep(make(self._ids, GAP, {"lost": lost}))

        await self.parts.outage.watch(events.probe, keep, gap)


def _held(names: Iterable[str], roles: Mapping[str, Role]) -> dict[str, Role | None]:
    return {name: roles.get(name) for name in names}


def _address(source: str) -> str:
    """The IP address in "1.2.3.4", "1.2.3.4:5" or "[::1]:5"; empty if there is none."""
    host = source
    if source.startswith("["):
        host = source[1:].partition("]")[0]
    elif source.count(":") == 1:
        host = source.partition(":")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""
