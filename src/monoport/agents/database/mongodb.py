"""The engine for MongoDB: from the user's hello to a real server that knows users by certificate or password.

Belongs here: connecting, TLS, authenticating, and what ends a session. Requests are judged in `mongodb_commands` and
moved in `mongodb_exchange`; the bytes of messages live in `wire/mongodb`.
"""

import asyncio
import secrets
import ssl
from collections.abc import Mapping
from typing import Any

import structlog

from monoport import __version__
from monoport.agents.database.certificates import Issuer
from monoport.agents.database.conversation import Unrecorded, Violation
from monoport.agents.database.engine import Session, Unreachable
from monoport.agents.database.mongodb_commands import HELLO_BYTES, Requests
from monoport.agents.database.mongodb_exchange import Exchange, Room
from monoport.agents.database.upstream import Upstream
from monoport.auth.client import AuthError
from monoport.config.model import Database
from monoport.errors import traced
from monoport.net.stream import Stream
from monoport.net.tls import connect_tls
from monoport.wire.front import Send, Why
from monoport.wire.mongodb import bson, hello
from monoport.wire.mongodb.front import MAX_OPENING, Refusing
from monoport.wire.mongodb.messages import Framer, Message, ProtocolError, msg, parse, reply_body
from monoport.wire.scram import MECHANISM, Scram, ScramError

PORT = 27017
OPENING = 30.0  # seconds until the real server has let us in
STARTUP = 10.0  # seconds for the user's hello, which the proxy has already read
TELLING = 3.0  # seconds for a driver's first command after a hello, whose answer says why it is refused
EXTERNAL = "$external"  # the database of users that are known by certificate
_UNKNOWN = (59, 238)  # CommandNotFound, NotImplemented: the server has no such authentication

_log = structlog.get_logger()


class Mongodb:
    """Speaks MongoDB to one registered database.

    Args:
        database: as configured.
        issuer: client certificates, and the CAs of database servers.
    """

    def __init__(self, database: Database, issuer: Issuer) -> None:
        self._database = database
        self._room = Room()
        self._upstream = Upstream(database, issuer, PORT, always_shows=True)

    async def reach(self, session: Session) -> None:
        """Connect to the real server, over which nothing is said yet. Raises Unreachable."""
        await self._upstream.reach(session)

    async def serve(self, session: Session, client: Stream) -> None:
        """Run one session to its end; whatever fails is told to the client as a command's error."""
        log = _log.bind(connection=session.connection, database=self._database.name)
        async with asyncio.timeout(STARTUP):
            first = await _read_hello(client)
        try:
            context, password = await self._upstream.proof(session)
            async with await self._secure(session.take() or await self._upstream.dial(), context) as server:
                async with asyncio.timeout(OPENING):
                    said = await self._opening(server, session.user, password)
                requests = Requests(session, f"{self._database.name}/{self._database.uri}")
                await client.write(requests.greeting(first, said))
                await self._converse(session, client, server, requests)
        except Unreachable as error:
            log.warning("database cannot be used", reason=error.detail)
            await _refuse(session, client, first, Why.OFFLINE, f"{error}. {error.hint}" if error.hint else str(error))
        except AuthError as error:
            log.warning("no client certificate", reason=str(error))
            reason = f'no certificate for database user "{session.user}": {error}'
            await _refuse(session, client, first, Why.DENIED, reason)
        except TimeoutError:
            log.warning("database is slow", seconds=OPENING)
            reason = f'database "{self._database.name}" did not answer in time'
            await _refuse(session, client, first, Why.OFFLINE, reason)

    async def cancel(self, session: Session) -> None:
        """Nothing: MongoDB's clients cancel by closing their connection, or by commands."""

    async def probe(self) -> str:
        """Return "" if the real server answers over TLS that verifies: drivers are not told a version beforehand.

        Raises Unreachable.
        """
        context = self._upstream.context()
        async with await self._secure(await self._upstream.dial(), context):
            return ""

    # the real server

    async def _secure(self, raw: Stream, context: ssl.SSLContext) -> Stream:
        async def begin(raw: Stream, name: str) -> Stream:
            return await connect_tls(raw, context, server_hostname=name)

        return await self._upstream.secure(raw, begin)

    # its opening

    async def _opening(self, server: Stream, user: str, password: str | None) -> dict[str, Any]:
        """Make ourselves known to the server, and return what it says of itself. Raises Unreachable."""
        said = await self._hello(server)
        if password is None:
            await self._by_certificate(server)
        else:
            await self._by_password(server, user, password)
        return said

    async def _hello(self, server: Stream) -> dict[str, Any]:
        metadata = {
            "driver": {"name": "monoport", "version": __version__},
            "os": {"type": "Linux"},
            "platform": "monoport database agent",
        }
        answer = await self._ask(server, {"hello": 1, "client": metadata, "$db": "admin"})
        try:
            return hello.server_hello(answer, reply_body(answer))
        except ProtocolError as error:
            raise self._upstream.unreachable("does not speak MongoDB as it should", str(error)) from error

    async def _by_certificate(self, server: Stream) -> None:
        """Authenticate by the certificate that TLS has shown, where the server knows how."""
        answer = await self._command(server, {"authenticate": 1, "mechanism": "MONGODB-X509", "$db": EXTERNAL})
        if answer["ok"] or answer["code"] in _UNKNOWN:
            return  # in the second case TLS alone has asked for the certificate
        raise self._upstream.unreachable(
            "does not take its agent's certificate",
            answer["errmsg"],
            'In the server, create the user "CN=NAME" in $external, with tlsCAFile set to what tctl auth sign wrote',
        )

    async def _by_password(self, server: Stream, user: str, password: str) -> None:
        """Authenticate by SCRAM-SHA-256."""
        scram = Scram(user, password, secrets.token_urlsafe(24))
        start = {"saslStart": 1, "mechanism": MECHANISM, "payload": scram.begin(), "$db": "admin"}
        try:
            answer = await self._command(server, start | {"options": {"skipEmptyExchange": True}})
            if answer["ok"]:
                proof = await asyncio.to_thread(scram.proof, answer["payload"])
                more = {"saslContinue": 1, "conversationId": answer["conversationId"], "$db": "admin"}
                answer = await self._command(server, more | {"payload": proof})
                if answer["ok"]:
                    scram.verify(answer["payload"])
                    if not answer["done"]:
                        answer = await self._command(server, more | {"payload": b""})
        except ScramError as error:
            raise self._upstream.unreachable("cannot be authenticated to", str(error)) from error
        if not answer["ok"]:
            raise self._upstream.unreachable(f'does not take its agent\'s password for "{user}"', answer["errmsg"])

    async def _command(self, server: Stream, document: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command in the opening and return the fields of its answer that matter there. Raises Unreachable."""
        data = await self._ask(server, document)
        try:
            fields = bson.fields(data, *reply_body(data))
            found: dict[str, Any] = {"ok": False, "code": 0, "errmsg": "", "payload": b"", "done": False}
            for name in ("ok", "code", "done"):
                if name in fields:
                    found[name] = bson.number(data, fields[name])
            if "errmsg" in fields:
                found["errmsg"] = bson.text(data, fields["errmsg"])
            if "payload" in fields:
                found["payload"] = bson.binary(data, fields["payload"])
            found["conversationId"] = bson.raw(data, fields["conversationId"]) if "conversationId" in fields else None
        except (ProtocolError, bson.BsonError) as error:
            raise self._upstream.unreachable("does not speak MongoDB as it should", str(error)) from error
        return found

    async def _ask(self, server: Stream, document: Mapping[str, Any]) -> bytes:
        """Send one message in the opening and return the whole answer. Raises Unreachable."""
        framer = Framer(HELLO_BYTES)
        try:
            await server.write(msg(document, request_id=1))
            while (whole := framer.take()) is None:
                data = await server.read()
                if not data:
                    raise self._upstream.unreachable("ends the connection", "while it was asked who it is")
                framer.add(data)
        except ProtocolError as error:
            raise self._upstream.unreachable("does not speak MongoDB as it should", str(error)) from error
        except ConnectionError as error:
            raise self._upstream.unreachable("breaks the connection off", str(error)) from error
        if framer.waiting:
            raise self._upstream.unreachable("does not speak MongoDB as it should", "it says more than it was asked")
        return whole

    # a session

    async def _converse(self, session: Session, client: Stream, server: Stream, requests: Requests) -> None:
        exchange = Exchange(client, server, requests.judge, requests.ended, self._room)
        session.on_end = exchange.end
        if session.ended:
            exchange.end(session.ended)
        try:
            await exchange.run()
        except Violation as error:
            _log.info("session ended", connection=session.connection, reason=str(error))
            client.send(requests.failure(Why.PROTOCOL, str(error), exchange.asked))
        except Unrecorded as error:
            _log.error("session ended: audit log", connection=session.connection, reason=error.detail)
            text = f"session ended: the command could not be recorded: {error}"
            client.send(requests.failure(Why.INTERNAL, text, exchange.asked))
        finally:
            session.on_end = None


ENGINE = Mongodb


async def _read_hello(client: Stream) -> Message:
    """The client's first message, which the proxy has read before. Raises ConnectionError."""
    framer = Framer(MAX_OPENING)
    try:
        while (whole := framer.take()) is None:
            data = await client.read(MAX_OPENING)
            if not data:
                raise ConnectionError("the stream ended before its hello")
            framer.add(data)
        first = parse(whole)
        if hello.hello_name(first) is None or framer.waiting:
            raise ConnectionError("the stream does not begin with one hello")
    except ProtocolError as error:
        raise ConnectionError(str(error)) from error
    return first


async def _refuse(session: Session, client: Stream, first: Message, why: Why, reason: str) -> None:
    """Answer the hello as a server would, and the client's first command with the reason."""
    refusing = Refusing(why, traced(reason, session.connection))
    await client.write(refusing.answer(first))
    try:
        async with asyncio.timeout(TELLING):
            while data := await client.read(MAX_OPENING):
                step = refusing.receive(data)
                while isinstance(step, Send):
                    await client.write(step.data)
                    step = refusing.receive(b"")
                if step is not None:
                    return
    except TimeoutError:
        return  # a monitor's connection, which has nothing to ask
