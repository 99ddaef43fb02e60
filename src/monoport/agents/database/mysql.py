"""The engine for MySQL and MariaDB: from the user's answer to the greeting to a real server that knows users by
certificate.

Belongs here: connecting, the session, cancelling. The bytes of messages live in `wire/mysql`, the login at the real
server in `mysql_login`, the audited relay in `conversation`.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from monoport.access.decide import Denied
from monoport.agents.database.certificates import Issuer
from monoport.agents.database.conversation import Conversation, Passage, Unrecorded, Violation
from monoport.agents.database.engine import Session, Unreachable
from monoport.agents.database.mysql_audit import audited
from monoport.agents.database.mysql_login import NoTls, Secret, Secure, Unproven, log_in, read_packet, secured
from monoport.agents.database.mysql_stream import CompressedStream
from monoport.agents.database.mysql_threads import Threads
from monoport.agents.database.upstream import CONNECT, Upstream
from monoport.auth.client import AuthError
from monoport.config.model import Database
from monoport.errors import traced
from monoport.net.stream import Stream
from monoport.wire.front import Why
from monoport.wire.mysql.actions import Action
from monoport.wire.mysql.commands import LOCAL_FILES, Commands
from monoport.wire.mysql.front import CODES, FRAMING, refusal
from monoport.wire.mysql.handshake import Answer, Greeting, ServerRefusal, read_answer
from monoport.wire.mysql.packets import EOF, OK, Capability, ProtocolError, error, packet

PORT = 3306
OPENING = 30.0  # seconds until the real server has let the user in: plug-ins may ask elsewhere
STARTUP = 10.0  # seconds for the user's answer to the greeting, which the proxy has already read
PROBE_USER = "monoport_health"  # needs no account: that the server answers its login at all is the proof
ACCESS_DENIED = frozenset({1044, 1045, 1698})  # error codes of a login that the server understood and did not want
UNPROVEN = frozenset({1045, 1698})  # those of them by which it was not convinced who logs in
# What is asked of every server, whatever the client can do.
NEEDED = Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.PLUGIN_AUTH | Capability.TRANSACTIONS

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A real server that has let the user in."""

    stream: Stream
    thread: int
    welcome: bytes  # payload of its OK


class Mysql:
    """Speaks MySQL to one registered database.

    Args:
        database: as configured.
        issuer: client certificates, and the CAs of database servers.
    """

    def __init__(self, database: Database, issuer: Issuer) -> None:
        self._database = database
        self._upstream = Upstream(database, issuer, PORT)
        self._threads = Threads()

    async def reach(self, session: Session) -> None:
        """Connect to the real server, over which nothing is said yet. Raises Unreachable, AuthError.

        What it will be shown is looked for first: servers shut out whoever breaks off before the login too often.
        """
        await self._upstream.certified(session)
        await self._upstream.reach(session)
        session.unused = self._not_used

    async def serve(self, session: Session, client: Stream) -> None:
        """Run one session to its end; whatever fails is told to the client as an ERR packet."""
        log = _log.bind(connection=session.connection, database=self._database.name)
        number = 0
        try:
            number, answer = await _read_answer(client)
            number += 1
            _check(answer, session)
            local = bool(answer.capabilities & Capability.LOCAL_FILES)
            local = local and session.deny(session.database, (LOCAL_FILES,)) is None
            async with self._connected(session, answer, local_files=local) as server:
                session.upstream_key = server.thread
                await client.write(packet(number, server.welcome))
                if answer.capabilities & Capability.COMPRESS:
                    client = CompressedStream(client)
                number = 0  # of an ERR that nothing has asked for
                with self._threads.running(session, server.thread):
                    await self._converse(session, client, server, local_files=local)
        except ProtocolError as problem:
            log.info("session refused", reason=str(problem))
            await client.write(_refusal(number, session, Why.PROTOCOL, str(problem)))
        except ServerRefusal as refused:
            log.warning("database refuses the login", code=refused.code, reason=str(refused))
            said = f'{refused} (said database "{self._database.name}"{self._hint(refused, session)})'
            await client.write(error(number, refused.code, refused.state, traced(said, session.connection)))
        except Unreachable as problem:
            log.warning("database cannot be used", reason=problem.detail)
            hint = f". {problem.hint}" if problem.hint else ""
            await client.write(_refusal(number, session, Why.OFFLINE, f"{problem}{hint}"))
        except AuthError as problem:
            log.warning("no client certificate", reason=str(problem))
            reason = f'no certificate for database user "{session.user}": {problem}'
            await client.write(_refusal(number, session, Why.DENIED, reason))
        except TimeoutError:
            log.warning("database is slow", seconds=OPENING)
            reason = f'database "{self._database.name}" did not answer in time'
            await client.write(_refusal(number, session, Why.OFFLINE, reason))

    async def cancel(self, session: Session) -> None:
        """Stop what `session` runs, by KILL QUERY on another connection of the same user. Raises Unreachable."""
        if session.upstream_key is None:
            return  # not started
        answer = Answer(NEEDED, user=session.user)
        async with self._connected(replace(session, database=""), answer) as server, asyncio.timeout(CONNECT):
            await server.stream.write(packet(0, b"\x03KILL QUERY " + str(session.upstream_key).encode()))
            await server.stream.read()

    async def probe(self) -> str:
        """Return what the server calls itself, if it greets, speaks TLS that verifies, and answers a login.

        To the end of a login, for servers shut out whoever breaks off before it too often. Raises Unreachable.
        """
        return await self._ask_in_vain()

    async def _not_used(self, raw: Stream) -> None:
        """Take a connection to the end of a login, as a probe does: no client may have us shut out by leaving early."""
        try:
            async with asyncio.timeout(CONNECT):
                await self._ask_in_vain(raw)
        except (Unreachable, TimeoutError) as problem:
            _log.info("connection to a database not used", database=self._database.name, reason=str(problem))

    async def _ask_in_vain(self, raw: Stream | None = None) -> str:
        """Log in as nobody, over `raw` if there is one, and return the server's version. Raises Unreachable."""
        context = self._upstream.context()
        async with self._secured(lambda _: Answer(NEEDED, user=PROBE_USER), context, raw) as secure:
            try:
                await log_in(secure, Secret())
            except ServerRefusal as refused:
                if refused.code not in ACCESS_DENIED:
                    raise self._upstream.unreachable("does not take logins", str(refused)) from refused
            except Unproven:
                pass  # it would want a password of that user: it answers
            except (ProtocolError, ConnectionError) as problem:
                raise self._upstream.unreachable("breaks off the login", str(problem)) from problem
        return secure.greeting.version

    # the real server

    def _hint(self, refused: ServerRefusal, session: Session) -> str:
        """What the server was shown and did not take, for whoever makes its accounts."""
        if refused.code not in UNPROVEN:
            return ""
        if self._database.password_file is not None:
            return "; it was shown the password of its agent's password_file"
        shown = f"OU={self._database.name}, CN={session.user}"
        return f"; it was shown a certificate for {shown}: REQUIRE X509 or a REQUIRE SUBJECT with these takes it"

    @asynccontextmanager
    async def _connected(
        self, session: Session, answer: Answer, *, local_files: bool = False
    ) -> AsyncIterator[_Admitted]:
        """A connection to the real server as the session's database user.

        Raises Unreachable, ServerRefusal, AuthError, TimeoutError.
        """
        context, password = await self._upstream.proof(session)
        secret = Secret(password.encode(), verified=self._upstream.verified) if password is not None else Secret()

        def ask(greeting: Greeting) -> Answer:
            return self._asked(session, answer, greeting, local_files)

        async with asyncio.timeout(OPENING) as deadline:
            async with self._secured(ask, context, session.take()) as secure:
                try:
                    welcome = await log_in(secure, secret)
                except Unproven as problem:
                    raise self._upstream.unreachable(f"cannot be logged in to: it {problem}") from problem
                except (ProtocolError, ConnectionError) as problem:
                    raise self._upstream.unreachable("breaks off the login", str(problem)) from problem
                deadline.reschedule(None)
                yield _Admitted(secure.stream, secure.greeting.thread, welcome)

    @asynccontextmanager
    async def _secured(
        self, ask: Callable[[Greeting], Answer], context: ssl.SSLContext, raw: Stream | None = None
    ) -> AsyncIterator[Secure]:
        """TLS to the real server, over `raw` if there is one; `ask` says what for, by what it can do."""

        async def begin(raw: Stream, name: str) -> Secure:
            return await secured(raw, ask, context, name)

        try:
            secure = await self._upstream.secure(raw or await self._upstream.dial(), begin)
        except NoTls as problem:
            hint = "In the server's configuration, set ssl-cert, ssl-key and ssl-ca"
            raise self._upstream.unreachable("does not offer TLS", hint=hint) from problem
        except ServerRefusal as refused:
            raise self._upstream.unreachable(f"takes no connections: {refused}") from refused
        except ProtocolError as problem:
            raise self._upstream.unreachable("does not speak MySQL", str(problem)) from problem
        async with secure.stream:
            yield secure

    def _asked(self, session: Session, answer: Answer, greeting: Greeting, local_files: bool) -> Answer:
        """What the real server is asked for on the client's behalf. Raises Unreachable."""
        wanted = answer.capabilities & ~(Capability.COMPRESS | Capability.LOCAL_FILES | Capability.CONNECT_WITH_DB)
        if missing := wanted & FRAMING & ~greeting.capabilities:
            raise self._upstream.unreachable(f"is too old for this client: it lacks {missing.name}")
        capabilities = (wanted & greeting.capabilities) | NEEDED
        if local_files:
            capabilities |= Capability.LOCAL_FILES
        if session.database:
            capabilities |= Capability.CONNECT_WITH_DB
        return replace(answer, capabilities=capabilities, user=session.user, database=session.database)

    # a session

    async def _converse(self, session: Session, client: Stream, server: _Admitted, *, local_files: bool) -> None:
        judge = _Judge(session, self._threads)
        commands = Commands(judge, local_files=local_files)

        def inspect(data: bytes | memoryview) -> Passage[Action]:
            seen = commands.receive(data)
            return Passage(seen.actions, b"".join(seen.forward), bytes(seen.answer))

        async def record(actions: Sequence[Action]) -> None:
            await session.record([entry for action in actions for entry in audited(action, judge.rules)])

        said = packet(0, server.welcome)
        conversation = Conversation(client, server.stream, inspect, record, said, heard=commands.heard)
        session.on_end = conversation.end
        if session.ended:
            conversation.end(session.ended)
        why, reason = Why.ENDED, ""
        try:
            reason = await conversation.run()
            if not reason:
                return
            await self._interrupt(session, conversation)
            if not await conversation.settle(_waits):
                return
            reason = f"session ended: {reason}"
        except ConnectionError:
            if not commands.quit:  # to which servers answer with the end of the socket, not of TLS, or with a reset
                raise
            return
        except Violation as problem:
            _log.info("session ended", connection=session.connection, reason=str(problem))
            why, reason = Why.PROTOCOL, str(problem)
        except Unrecorded as problem:
            _log.error("session ended: audit log", connection=session.connection, reason=problem.detail)
            why, reason = Why.INTERNAL, f"session ended: the statement could not be recorded: {problem}"
        finally:
            session.on_end = None
        client.send(_refusal(commands.last + 1, session, why, reason))

    async def _interrupt(self, session: Session, conversation: Conversation[Action]) -> None:
        """Stop what runs, so that the end can be told at the end of a message."""
        if _waits(conversation.tail):
            return
        try:
            await self.cancel(session)
        except (Unreachable, ServerRefusal, AuthError, ConnectionError, TimeoutError) as problem:
            _log.info("no cancel at the session's end", connection=session.connection, reason=str(problem))


ENGINE = Mysql


class _Judge:
    """What a session may do, as roles say now."""

    def __init__(self, session: Session, threads: Threads) -> None:
        self._session = session
        self._threads = threads
        self.rules: dict[str, str] = {}  # which rule decided, for the log, by what the client was told

    def database(self, name: str) -> str:
        return self._told(self._session.deny(name, ()), f'database "{name}"')

    def feature(self, name: str) -> str:
        return self._told(self._session.deny(self._session.database, (name,)), name)

    def _told(self, denied: Denied | None, what: str) -> str:
        if denied is None:
            return ""
        reason = denied.reason if what in denied.reason else f"{what}: {denied.reason}"
        self.rules = {reason: denied.rule}
        return reason

    def thread(self, number: int) -> int | None:
        return self._threads.real(self._session, number)


def _waits(tail: bytes) -> bool:
    """Whether the server's last message ends a reply: EOF, or an OK without further words."""
    if tail[-9:-6] == b"\5\0\0" and tail[-5:-4] == bytes((EOF,)):
        return True
    return tail[-11:-8] == b"\7\0\0" and tail[-7] in (OK, EOF)


def _refusal(number: int, session: Session, why: Why, reason: str) -> bytes:
    """The ERR packet that tells a client why its session does not go on, and which connection that was."""
    assert why in CODES  # every reason has its code
    return refusal(number, why, traced(reason, session.connection))


async def _read_answer(client: Stream) -> tuple[int, Answer]:
    """The user's answer to the greeting, which the proxy has read before. Raises ProtocolError, ConnectionError."""
    try:
        async with asyncio.timeout(STARTUP):
            number, payload = await read_packet(client)
    except TimeoutError:
        raise ProtocolError(f"no answer to the greeting within {STARTUP:g} s") from None
    return number, read_answer(payload, inside=True)


def _check(answer: Answer, session: Session) -> None:
    """Hold the proxy to what the agent has authorised. Raises ProtocolError."""
    if answer.user not in ("", session.user) or answer.database not in ("", session.database):
        raise ProtocolError("the answer to the greeting names another user or database than the session")
