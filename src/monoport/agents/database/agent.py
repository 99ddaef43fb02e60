"""The database agent: which dialled streams may reach which registered database, as whom, and until when.

Belongs here: checking a preface anew, the lease of a session, finding a session to cancel, telling the cluster what is
registered. A proxy vouches only that the user's key was proven; everything else is decided here again. How a protocol
is spoken lives in the engines.
"""

import asyncio
import hmac
import importlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from cryptography import x509

from monoport import protocols
from monoport.access.decide import UNACCEPTED, Denied, Permit, authorize
from monoport.access.identity import Identity, IdentityError, Kind, from_x509
from monoport.access.lease import Leases
from monoport.access.remembered import Remembered
from monoport.access.resources import Database, DatabaseSpec, Lock, Metadata, Resource, Role
from monoport.agents.database.certificates import Issuer, Signer
from monoport.agents.database.engine import Deny, Engine, Entry, Session, Unreachable
from monoport.agents.sealed import Sealer
from monoport.audit.log import Log
from monoport.audit.printable import printable
from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthError
from monoport.config import model
from monoport.errors import Failure
from monoport.net.stream import Stream, linger
from monoport.protocols.description import Description
from monoport.tunnel import dial, preface
from monoport.tunnel.preface import Preface

HEARTBEAT = 15.0  # seconds, up to a fifth less: the inventory forgets a database after 60
STATEMENT = "db.query"  # the event of one statement, in every protocol
PROBLEM = 256  # characters of what is wrong with a server, for listings
REMOVED = "removed"  # auth's code for a database that an administrator has removed
REACH = 8.0  # seconds for a connection to the real server, less than a proxy waits for the dial's answer
PROBE = 10.0  # seconds that a probe of a real server may take

_log = structlog.get_logger()


class Directory(Protocol):
    """What the agent needs to know of the cluster; `auth.cache.Cache` is one."""

    @property
    def roles(self) -> Mapping[str, Role]: ...

    @property
    def locks(self) -> tuple[Lock, ...]: ...

    @property
    def cas(self) -> TrustedCas: ...


class Auth(Signer, Protocol):
    """What the agent asks of the auth service; `auth.client.AuthClient` is one."""

    async def heartbeat(self, resource: Resource, *, first: bool = False) -> None: ...


class Databases:
    """Serves the databases registered on one host.

    Args:
        host_id: who we are in the cluster.
        databases: as configured; nothing else is ever dialled.
        directory: roles, locks and CAs.
        auth: signs client certificates, takes heartbeats.
        audit: where sessions and statements are recorded.
        leases: ends sessions in time; somebody sweeps it every second.
        sealer: shakes hands with users' clients, for sessions that the proxy cannot read; without one there are none.
        table: the protocols that can be spoken.
        now, sleep, rand: the time in UTC, pausing and jitter.
    """

    def __init__(
        self,
        host_id: str,
        databases: Sequence[model.Database],
        directory: Directory,
        auth: Auth,
        audit: Log,
        *,
        leases: Leases,
        sealer: Sealer | None = None,
        table: Mapping[str, Description] = protocols.TABLE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._table = table
        self._directory = directory
        self._auth = auth
        self._audit = audit
        self._leases = leases
        self._sealer = sealer
        self._now, self._sleep, self._rand = now, sleep, rand
        issuer = Issuer(auth, lambda: directory.cas, now=now)
        self._resources = {one.name: _resource(one, host_id) for one in databases}
        self._engines = {one.name: _engine(table[one.protocol], one, issuer) for one in databases}
        self._told: set[str] = set()  # databases that auth has heard of from this process
        self._removed: set[str] = set()  # databases that an administrator has removed since
        self._sessions: dict[str, tuple[str, Session]] = {}  # by connection id: database and session
        self.begun: Counter[str] = Counter()  # sessions by protocol, since the start of this process
        self.statements: Counter[str] = Counter()  # that were recorded, by protocol
        self.health: dict[str, str] = {}  # by database: "" if its server answers, else what is wrong

    @property
    def resources(self) -> list[Database]:
        """What is registered, as the cluster sees it."""
        return list(self._resources.values())

    @property
    def open(self) -> Counter[str]:
        """How many sessions there are now, by protocol."""
        return Counter(self._resources[name].spec.protocol for name, _ in self._sessions.values())

    async def serve(self, asked: Preface, stream: Stream) -> None:
        """Serve one dialled stream to its end; raises DialRefused as long as nothing was accepted."""
        match asked.kind:
            case preface.Kind.DATABASE:
                await self._session(asked, stream)
            case preface.Kind.CANCEL:
                await self._cancel(asked, stream)
            case _:
                raise dial.DialRefused(dial.NOT_SERVED, "this agent serves databases only")

    async def run(self) -> None:
        """Tell the cluster, until cancelled, which databases are here, and look whether their servers answer."""
        while True:
            async with asyncio.TaskGroup() as group:
                for name in self._resources:
                    group.create_task(self._beat(name))
            await self._sleep(HEARTBEAT * (1 - self._rand() / 5))

    async def _beat(self, name: str) -> None:
        await self._tell(name)
        problem, version = "", ""
        try:
            async with asyncio.timeout(PROBE):
                version = await self._engines[name].probe()
        except Unreachable as error:
            problem = error.detail
        except TimeoutError:
            problem = f"no answer within {PROBE:g} s"
        if problem != self.health.get(name, ""):
            _log.warning("database health", database=name, problem=problem or "none any more")
        self.health[name] = problem
        resource = self._resources[name]
        # what listings may hold: printing ASCII, whatever a server's or library's words were
        shown = printable(problem).encode("ascii", "backslashreplace").decode()[:PROBLEM]
        found = {"state": "down" if problem else "up", "problem": shown}
        if version:
            found["server_version"] = version
        spec = resource.spec.model_copy(update=found)
        if spec != resource.spec:
            self._resources[name] = resource.model_copy(update={"spec": spec})
            await self._tell(name)

    async def _tell(self, name: str) -> None:
        try:
            await self._auth.heartbeat(self._resources[name], first=name not in self._told)
        except AuthError as error:
            if error.code != REMOVED:
                _log.warning("heartbeat failed", database=name, reason=str(error))
            elif name not in self._removed:
                self._removed.add(name)
                _log.warning("database no longer served", database=name, reason=str(error))
            return
        self._told.add(name)
        if name in self._removed:
            self._removed.remove(name)
            _log.info("database served again", database=name)

    async def _session(self, asked: Preface, stream: Stream) -> None:
        engine = self._engines.get(asked.target)
        if engine is None or asked.target in self._removed:
            raise dial.DialRefused(dial.NOT_SERVED, f'database "{asked.target}" is not registered here')
        if asked.sealed and self._sealer is None:
            raise dial.DialRefused(dial.NOT_SERVED, "this agent seals no sessions")
        permit, who = await self._authorised(asked)
        protocol = who["protocol"]

        async def record(entries: Sequence[Entry]) -> None:
            await self._audit.emit_all([(kind, {**who, **fields}) for kind, fields in entries])
            self.statements[protocol] += sum(kind == STATEMENT for kind, _ in entries)

        session = Session(
            connection=asked.connection,
            user=asked.user,
            database=asked.database,
            certificate=asked.certificate,
            process_id=asked.process_id,
            secret=asked.secret,
            record=record,
            features=asked.features,
            owner=str(permit.identity),
            deny=self._denials(asked, permit.identity, protocol),
        )
        if asked.connection in self._sessions:
            raise dial.DialRefused(dial.DENIED, "this connection has a session already")
        self._sessions[asked.connection] = (asked.target, session)
        self.begun[protocol] += 1
        lease = self._leases.add(permit.identity, permit.until, session.end, nodes=(permit.host_id,))
        try:
            await self._reach(asked, engine, session)
            await dial.accept(stream)
            _log.debug("session accepted", **who)
            if self._sealer is None or not asked.sealed:
                await engine.serve(session, stream)
            else:
                await _serve_sealed(engine, session, await _open(self._sealer, asked, session, stream))
        finally:
            lease.close()
            del self._sessions[asked.connection]
            await session.give_up()

    def _denials(self, asked: Preface, identity: Identity, protocol: str) -> Deny:
        """Return what decides about the databases that a session goes on to, and about its features."""
        rights = Remembered(identity)

        def deny(database: str, features: tuple[str, ...]) -> Denied | None:
            action = protocols.login(protocol, asked.user, database, features, self._table)
            resource, directory = self._resources[asked.target], self._directory
            decision = rights.authorize(resource, action, directory.roles, directory.locks, self._now())
            return decision if isinstance(decision, Denied) else None

        return deny

    async def _reach(self, asked: Preface, engine: Engine, session: Session) -> None:
        """Connect to the real server before the dial is accepted: where it is down, the proxy tries the next agent."""
        code, detail = dial.UNAVAILABLE, ""
        try:
            async with asyncio.timeout(REACH):
                await engine.reach(session)
            return
        except Unreachable as error:
            reason, detail = str(error), error.detail
        except AuthError as error:
            reason = f'no certificate for database user "{asked.user}": {error}'
            code = dial.UNAVAILABLE if error.code == "unavailable" else dial.DENIED
        except TimeoutError:
            reason = f'database "{asked.target}" cannot be reached from its agent within {REACH:g} s'
        _log.warning(
            "database cannot be used", connection=asked.connection, database=asked.target, reason=detail or reason
        )
        raise dial.DialRefused(code, reason)

    async def _authorised(self, asked: Preface) -> tuple[Permit, dict[str, Any]]:
        """Decide by the certificate alone what the proxy has decided before. Raises DialRefused."""
        where: dict[str, Any] = {"connection": asked.connection, "source": asked.source}
        now = self._now()
        try:
            certificate = x509.load_pem_x509_certificate(asked.certificate.encode())
            identity = from_x509(certificate, self._directory.cas, now)
            if identity.kind is not Kind.USER:
                raise IdentityError("a host's certificate opens no database")
        except (ValueError, IdentityError) as error:
            who = where | {"user": "", "database": asked.target}
            await self._audit.emit("db.session.deny", **who, reason=str(error), rule=UNACCEPTED)
            raise dial.DialRefused(dial.DENIED, f"certificate not accepted: {error}") from error
        who = where | {
            "user": str(identity),
            "database": asked.target,
            "protocol": self._resources[asked.target].spec.protocol,
            "db_user": asked.user,
            "db_name": asked.database,
            **({"features": list(asked.features)} if asked.features else {}),
        }
        protocol = self._resources[asked.target].spec.protocol
        action = protocols.login(protocol, asked.user, asked.database, asked.features, self._table)
        directory = self._directory
        resource = self._resources[asked.target]
        decision = authorize(identity, resource, action, directory.roles, directory.locks, now)
        if isinstance(decision, Denied):
            _log.warning("session refused", **who, rule=decision.rule)
            await self._audit.emit("db.session.deny", **who, reason=decision.reason, rule=decision.rule)
            raise dial.DialRefused(dial.DENIED, decision.reason)
        return decision, who

    async def _cancel(self, asked: Preface, stream: Stream) -> None:
        name, session = self._sessions.get(asked.connection, ("", None))
        if session is None or name != asked.target or session.process_id != asked.process_id:
            raise dial.DialRefused(dial.NOT_SERVED, "no such session")
        if not hmac.compare_digest(session.secret, asked.secret):
            raise dial.DialRefused(dial.NOT_SERVED, "no such session")
        await dial.accept(stream)
        try:
            await self._engines[name].cancel(session)
        except (Unreachable, AuthError, ConnectionError, TimeoutError) as error:
            _log.warning("cancel failed", connection=asked.connection, database=name, reason=str(error))


async def _open(sealer: Sealer, asked: Preface, session: Session, stream: Stream) -> Stream:
    """Shake hands with the user's client, unless the session has to end before. Raises as `Sealer.open`."""

    def cut(reason: str) -> None:
        stream.abort(ConnectionError(f"session ended: {reason}"))  # nothing can be said to the client yet

    session.on_end = cut
    try:
        if session.ended:
            cut(session.ended)
        return await sealer.open(asked, stream)
    except BaseException:
        stream.abort()  # at once, whatever else ends with the session
        raise
    finally:
        session.on_end = None


async def _serve_sealed(engine: Engine, session: Session, client: Stream) -> None:
    await engine.serve(session, client)
    linger(client)  # its end, which crosses ours, must not become a reset that the proxy would pass on
    await client.wait_closed()


def _resource(database: model.Database, host_id: str) -> Database:
    return Database(
        metadata=Metadata(name=database.name, labels=dict(database.static_labels)),
        spec=DatabaseSpec(protocol=database.protocol, host_id=host_id, server_version=database.server_version),
    )


def _engine(protocol: Description, database: model.Database, issuer: Issuer) -> Engine:
    make: Callable[[model.Database, Issuer], Engine]
    try:
        make = importlib.import_module(protocol.engine).ENGINE
    except (ImportError, AttributeError) as error:
        raise Failure(f"the engine of protocol {protocol.name} cannot be loaded: {error}") from error
    return make(database, issuer)
