"""What becomes of one request of a MongoDB client: passed on, answered here, or refused; all of it audited.

Belongs here: asking whether a command may touch what it names, and which events it makes. How requests are read
lives in `wire/mongodb`, moving them in `mongodb_exchange`.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any

from monoport.access.decide import Denied
from monoport.agents.database.conversation import Unrecorded, Violation
from monoport.agents.database.engine import Session
from monoport.agents.database.mongodb_exchange import Answer, Pass, Verdict
from monoport.errors import Failure, traced
from monoport.wire.front import Why
from monoport.wire.mongodb import commands, hello
from monoport.wire.mongodb.commands import ADMIN, AUTHENTICATION, Command
from monoport.wire.mongodb.messages import Message, Msg, ProtocolError, answer, msg, parse, reply_body

HELLO_BYTES = 65_536  # of a server's hello: a replica set's fifty hosts take 15 KiB
LIST_BYTES = 16 * 1024 * 1024 + 16 * 1024  # of a list of databases: one document
SHOWN = 120  # characters of a collection's name in an event; servers take up to 255 bytes


class Requests:
    """Judges one session's requests.

    Args:
        session: who asks, what it may, where it is recorded.
        server_id: tells this real server from others, for drivers behind a load balancer.
    """

    def __init__(self, session: Session, server_id: str) -> None:
        self._session = session
        self._server_id = server_id
        self._ids = count(1)

    def greeting(self, message: Message, server: Mapping[str, Any]) -> bytes:
        """Return the answer to a hello, of what the server has said."""
        return answer(hello.hello_reply(message, server, self._server_id), message, next(self._ids))

    async def judge(self, data: bytes) -> Verdict:
        """Return what becomes of a request. Raises Violation, Unrecorded."""
        try:
            message = parse(data)
            if hello.hello_name(message) is not None:
                return self._hello(message)
            if not isinstance(message, Msg):
                text = "OP_QUERY is taken for hello only: this driver is too old"
                return self._failure(message, hello.UNSUPPORTED_QUERY, text)
            command = commands.read(message)
            if command.name in AUTHENTICATION:
                return self._answer(message, hello.authenticated(message, self._session.user))
        except ProtocolError as error:
            raise Violation(str(error)) from error
        return await self._command(message, command)

    def ended(self, why: str, request_id: int) -> bytes:
        """Return the words for a client whose session ends, in answer to what it waits for."""
        text = traced(f"session ended: {why}", self._session.connection)
        return msg(hello.error(hello.CODES[Why.ENDED], text), request_id=next(self._ids), response_to=request_id)

    def failure(self, why: Why, text: str, request_id: int = 0) -> bytes:
        """Return the words for a client that is cut off."""
        text = traced(text, self._session.connection)
        return msg(hello.error(hello.CODES[why], text), request_id=next(self._ids), response_to=request_id)

    def _hello(self, message: Message) -> Verdict:
        """A hello of our own in place of the client's, whose metadata, compression and authentication end here."""
        if isinstance(message, Msg) and not message.answered:
            return Answer(b"")

        def rewrite(said: bytes) -> bytes:
            return self.greeting(message, _checked(said))

        asks = msg({"hello": 1, "$db": ADMIN}, request_id=message.request_id)
        return Pass(asks, message.request_id, rewrite=rewrite, keep=HELLO_BYTES)

    async def _command(self, message: Msg, command: Command) -> Verdict:
        denied = self._denied(command)
        fields = _fields(command)
        if denied is not None:
            await self._record("db.query.deny", fields | {"reason": denied.reason, "rule": denied.rule})
            return self._failure(message, hello.UNAUTHORIZED, denied.reason)
        await self._record("db.query", fields)
        if not command.lists or not message.answered:
            return Pass(message.data, message.request_id, message.answered)

        def rewrite(said: bytes) -> bytes:
            try:
                document = hello.allowed_databases(said, reply_body(said), self._sees)
            except ProtocolError as error:
                raise ConnectionError(str(error)) from error
            return answer(document, message, next(self._ids))

        return Pass(message.data, message.request_id, rewrite=rewrite, keep=LIST_BYTES)

    def _denied(self, command: Command) -> Denied | None:
        """Why a command may not be run, None if it may."""
        if command.refused:
            return Denied(command.refused, "commands for nobody")
        if command.own:
            return None
        for name in command.databases:
            if (denied := self._session.deny(name, ())) is not None:
                return denied
        if command.whole and (denied := self._session.deny(ADMIN, ())) is not None:
            return Denied(f"{command.name[:64]} is about the whole server: {denied.reason}", denied.rule)
        return None

    def _sees(self, name: str) -> bool:
        return self._session.deny(name, ()) is None

    def _failure(self, message: Message, code: tuple[int, str], text: str) -> Answer:
        return self._answer(message, hello.error(code, traced(text, self._session.connection)))

    def _answer(self, message: Message, document: Mapping[str, Any]) -> Answer:
        if isinstance(message, Msg) and not message.answered:
            return Answer(b"")
        return Answer(answer(document, message, next(self._ids)))

    async def _record(self, kind: str, fields: Mapping[str, Any]) -> None:
        try:
            await self._session.record([(kind, fields)])
        except (Failure, OSError, ExceptionGroup) as error:
            raise Unrecorded(error) from error


def _checked(said: bytes) -> dict[str, Any]:
    try:
        return hello.server_hello(said, reply_body(said))
    except ProtocolError as error:
        raise ConnectionError(f"server's hello: {error}") from error


def _fields(command: Command) -> dict[str, Any]:
    """What the log is told of a command: names, and no values."""
    collection = command.collection[:SHOWN]
    place = f"{command.database}.{collection}" if collection else command.database
    fields: dict[str, Any] = {
        "statement": f"{command.name[:64]} {place}",
        "command": command.name[:64],
        "in_database": command.database,
        "collection": collection,
    }
    also = [name for name in command.databases if name != command.database]
    return fields | ({"also": also[:64], "also_count": len(also)} if also else {})
