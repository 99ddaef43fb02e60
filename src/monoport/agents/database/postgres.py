"""The engine for PostgreSQL: from the user's start-up message to a real server, which is shown who the user is.

Belongs here: connecting, TLS, cancelling, and what a failed login is called. The login's bytes are moved in
`postgres_login`, audit events are made in `postgres_audit`, messages live in `wire/postgres`, the audited relay in
`conversation`.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from monoport.agents.database.certificates import Issuer
from monoport.agents.database.conversation import Conversation, Unrecorded, Violation
from monoport.agents.database.engine import Session, Unreachable
from monoport.agents.database.postgres_audit import audited
from monoport.agents.database.postgres_login import login, open_session
from monoport.agents.database.upstream import CONNECT, Upstream
from monoport.audit import startup as parameters
from monoport.auth.client import AuthError
from monoport.config.model import Database
from monoport.errors import Failure, traced
from monoport.net.stream import Stream
from monoport.net.tls import TlsStream, connect_tls
from monoport.wire.front import Why
from monoport.wire.postgres.backend import Backend, LoginRefused
from monoport.wire.postgres.front import ALPN, SQLSTATES
from monoport.wire.postgres.login import AuthenticationDemanded, LoginError
from monoport.wire.postgres.messages import (
    MAX_MINOR,
    MAX_STARTUP,
    SSL_REQUEST,
    TLS_ACCEPTED,
    CancelRequest,
    ProtocolError,
    StartupMessage,
    error_response,
    parse_opening,
)
from monoport.wire.postgres.statements import Action, Statements

PORT = 5432
OPENING = 30.0  # seconds until the real server is ready: authentication hooks and start-up scripts may be slow
STARTUP = 10.0  # seconds for the user's start-up message, which the proxy has already read

INVALID_AUTHORIZATION = "28"  # class of the SQLSTATEs for a login that is not accepted
_CERT_LINE = (
    "In the server's pg_hba.conf, put this line before all others: hostssl all all all cert. "
    "Where it cannot check certificates, give its agent a password_file for it"
)
_OTHER_LINE = "In the server's pg_hba.conf, the line for its agent may say scram-sha-256, md5 or password"

# What a user may set at start-up: settings that every session may change by SET as well, as drivers do.
PARAMETERS = frozenset(
    {
        "application_name",
        "bytea_output",
        "client_encoding",
        "client_min_messages",
        "datestyle",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "extra_float_digits",
        "fallback_application_name",
        "geqo",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "intervalstyle",
        "jit",
        "lock_timeout",
        "options",
        "plan_cache_mode",
        "search_path",
        "standard_conforming_strings",
        "statement_timeout",
        "synchronous_commit",
        "tcp_user_timeout",
        "timezone",
        "transaction_timeout",
        "work_mem",
    }
)
_HANDLED = frozenset({"user", "database", "replication"})  # set by the session itself

_log = structlog.get_logger()


class Postgres:
    """Speaks PostgreSQL to one registered database.

    Args:
        database: as configured.
        issuer: client certificates, and the CAs of database servers.
    """

    def __init__(self, database: Database, issuer: Issuer) -> None:
        self._database = database
        self._upstream = Upstream(database, issuer, PORT, [ALPN])

    async def reach(self, session: Session) -> None:
        """Connect to the real server, over which nothing is said yet. Raises Unreachable."""
        await self._upstream.reach(session)

    async def serve(self, session: Session, client: Stream) -> None:
        """Run one session to its end; whatever fails is told to the client as an ErrorResponse."""
        log = _log.bind(connection=session.connection, database=self._database.name)
        try:
            startup = await _read_startup(client)
            upstream, dropped = _upstream_startup(startup, session)
            await _record_startup(session, startup)
            secret = await self._upstream.password(session.user)
            async with self._connected(session) as server:
                verified = self._upstream.verified
                proof = None if secret is None else login(server, session.user, secret, verified=verified)
                backend = Backend(session.process_id, session.secret, startup.minor, dropped, proof)
                async with asyncio.timeout(OPENING):
                    said = await self._opening(server, upstream, backend, client)
                if not backend.ready:
                    return  # the server has said why, and the client has got it
                session.upstream_key = backend.key
                await self._converse(session, client, server, said)
        except ProtocolError as error:
            log.info("session refused", reason=str(error))
            await client.write(_refusal(session, Why.PROTOCOL, str(error)))
        except Unreachable as error:
            log.warning("database cannot be used", reason=error.detail)
            await client.write(_refusal(session, Why.OFFLINE, str(error), error.hint))
        except AuthError as error:
            log.warning("no client certificate", reason=str(error))
            reason = f'no certificate for database user "{session.user}": {error}'
            await client.write(_refusal(session, Why.DENIED, reason))
        except TimeoutError:
            log.warning("database is slow", seconds=OPENING)
            reason = f'database "{self._database.name}" did not answer in time'
            await client.write(_refusal(session, Why.OFFLINE, reason))
        except Unrecorded as error:
            log.error("session refused: audit log", reason=error.detail)
            await client.write(_refusal(session, Why.INTERNAL, f"the session could not be recorded: {error}"))

    async def cancel(self, session: Session) -> None:
        """Send the real server a cancel request for what `session` runs. Raises Unreachable.

        Over TLS, as PostgreSQL 17 does; the server closes the connection when it has passed the request on.
        """
        if session.upstream_key is None:
            return  # not started, or a server that gives out no keys
        request: CancelRequest = session.upstream_key
        async with self._connected(session) as server:
            await server.write(request.encode())
            async with asyncio.timeout(CONNECT):
                await server.read()

    async def probe(self) -> str:
        """Return if the real server answers SSLRequest with TLS that verifies. Raises Unreachable."""
        context = self._upstream.context()
        async with await self._secure(await self._upstream.dial(), context):
            return ""  # its version is told after the login

    # the real server

    @asynccontextmanager
    async def _connected(self, session: Session) -> AsyncIterator[TlsStream]:
        """A connection to the real server that shows who the session's database user is, unless a password will."""
        context = await self._upstream.certified(session)
        async with await self._secure(session.take() or await self._upstream.dial(), context) as stream:
            yield stream

    async def _secure(self, raw: Stream, context: ssl.SSLContext) -> TlsStream:
        async def begin(raw: Stream, name: str) -> TlsStream:
            await raw.write(SSL_REQUEST)
            if await raw.read_exactly(1) != TLS_ACCEPTED:
                raise self._upstream.unreachable("does not offer TLS: set ssl = on in its postgresql.conf")
            return await connect_tls(raw, context, server_hostname=name)

        return await self._upstream.secure(raw, begin)

    # a session

    async def _opening(self, server: Stream, startup: StartupMessage, backend: Backend, client: Stream) -> bytes:
        """Bring the server to its first ReadyForQuery, or to its own end, and return what it said last."""
        try:
            return await open_session(server, startup.encode(), backend, client)
        except AuthenticationDemanded as error:
            asks, hint = f"asks for {error.method} authentication, but its agent brings a certificate", _CERT_LINE
            if backend.proves:
                asks, hint = f"asks for {error.method} authentication, but its agent has a password", _OTHER_LINE
            raise self._upstream.unreachable(asks, hint=hint) from error
        except LoginRefused as error:
            what = f'does not take its agent\'s password for "{startup.user}": ask whoever runs its agent'
            if not error.sqlstate.startswith(INVALID_AUTHORIZATION):
                what = "breaks off its agent's login"
            raise self._upstream.unreachable(
                what, f"SQLSTATE {error.sqlstate or 'none'}; its own log says more"
            ) from error
        except LoginError as error:
            raise self._upstream.unreachable(f"cannot be logged in to: it {error}") from error

    async def _converse(self, session: Session, client: Stream, server: Stream, said: bytes) -> None:
        statements = Statements()

        async def record(actions: Sequence[Action]) -> None:
            await session.record([entry for action in actions for entry in audited(action)])

        conversation = Conversation(client, server, statements.receive, record, said)
        session.on_end = conversation.end
        if session.ended:
            conversation.end(session.ended)
        try:
            why = await conversation.run()
            if not why:
                return
            await self._interrupt(session, conversation)
            if await conversation.settle(_waits):
                client.send(_refusal(session, Why.ENDED, f"session ended: {why}"))
        except Violation as error:
            _log.info("session ended", connection=session.connection, reason=str(error))
            if _waits(conversation.tail):
                client.send(_refusal(session, Why.PROTOCOL, str(error)))
        except Unrecorded as error:
            _log.error("session ended: audit log", connection=session.connection, reason=error.detail)
            client.send(_refusal(session, Why.INTERNAL, f"session ended: the statement could not be recorded: {error}"))
        finally:
            session.on_end = None

    async def _interrupt(self, session: Session, conversation: Conversation[Action]) -> None:
        """Cancel what runs, so that the end can be told at the end of a message."""
        if _waits(conversation.tail):
            return
        try:
            await self.cancel(session)
        except (Unreachable, AuthError, ConnectionError, TimeoutError) as error:
            _log.info("no cancel at the session's end", connection=session.connection, reason=str(error))


ENGINE = Postgres


async def _record_startup(session: Session, startup: StartupMessage) -> None:
    """Make durable what the client sets for its session, before the real server hears of it. Raises Unrecorded."""
    if not startup.settings:
        return
    try:
        await session.record([("db.session.settings", {"startup": parameters.shown(startup.settings)})])
    except (Failure, OSError) as error:
        raise Unrecorded(error) from error


def _waits(tail: bytes) -> bool:
    """Whether the server's last message is ReadyForQuery."""
    return tail[-6:-1] == b"Z\0\0\0\5" and tail[-1:] in (b"I", b"T", b"E")


def _refusal(session: Session, why: Why, reason: str, hint: str = "") -> bytes:
    """The ErrorResponse that tells a client why its session does not go on, and which connection that was."""
    return error_response("FATAL", SQLSTATES[why], traced(reason, session.connection), hint=hint)


async def _read_startup(client: Stream) -> StartupMessage:
    """The user's start-up message, which the proxy has read before. Raises ProtocolError."""
    data = b""
    try:
        async with asyncio.timeout(STARTUP):
            while (parsed := parse_opening(data)) is None:
                more = await client.read(MAX_STARTUP - len(data))
                if not more:
                    raise ProtocolError("the stream ended before its start-up message")
                data += more
    except TimeoutError:
        raise ProtocolError(f"no start-up message within {STARTUP:g} s") from None
    packet, size = parsed
    if not isinstance(packet, StartupMessage):
        raise ProtocolError("the stream does not begin with a start-up message")
    client.unread(data[size:])
    return packet


def _upstream_startup(startup: StartupMessage, session: Session) -> tuple[StartupMessage, list[str]]:
    """Return what the real server is told, and the names of protocol options that it is not. Raises ProtocolError."""
    if (startup.user, startup.database) != (session.user, session.database):
        raise ProtocolError("the start-up message names another user or database than the session")
    if beyond := set(startup.features) - set(session.features):
        raise ProtocolError(f"the start-up message asks for {', '.join(sorted(beyond))}, which the session is not for")
    kept = {"user": session.user, "database": session.database}
    dropped = []
    for name, value in startup.parameters.items():
        if name.startswith("_pq_."):
            dropped.append(name)
        elif name.lower() in PARAMETERS or (name == "replication" and startup.features):
            kept[name] = value
        elif name not in _HANDLED:
            raise ProtocolError(f'parameter "{name}" cannot be set at start-up: use SET')
    return StartupMessage(min(startup.minor, MAX_MINOR), kept), dropped
