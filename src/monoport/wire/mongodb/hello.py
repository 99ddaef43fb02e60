"""What goes back to a client instead of a server's own words: hello, lists of databases, errors, authentication.

Belongs here: which fields of a hello a client may see, so that no driver follows a replica set's host names past the
proxy, and the documents that we write ourselves. Sending them is the front's and the engine's.
Source: https://github.com/mongodb/specifications (mongodb-handshake, server-discovery-and-monitoring, load-balancers)
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from monoport.wire.front import Why
from monoport.wire.mongodb import bson
from monoport.wire.mongodb.bson import Element, Raw
from monoport.wire.mongodb.commands import MAX_NAME
from monoport.wire.mongodb.messages import Message, Msg, ProtocolError

UNAUTHORIZED = (13, "Unauthorized")
AUTHENTICATION_FAILED = (18, "AuthenticationFailed")
PROTOCOL_ERROR = (17, "ProtocolError")
UNSUPPORTED_QUERY = (352, "UnsupportedOpQueryCommand")
INTERNAL = (1, "InternalError")

# Codes of MongoDB's own for each refusal: src/mongo/base/error_codes.yml names them.
CODES = {
    Why.DENIED: UNAUTHORIZED,
    Why.UNKNOWN: UNAUTHORIZED,
    Why.OFFLINE: (96, "OperationFailed"),  # not HostUnreachable, on which drivers try again at once
    Why.PROTOCOL: PROTOCOL_ERROR,
    Why.TLS_REQUIRED: UNAUTHORIZED,
    Why.UNSUPPORTED: (115, "CommandNotSupported"),
    Why.ENDED: UNAUTHORIZED,
    Why.INTERNAL: INTERNAL,
}

# Fields of a server's hello that a client gets. Not among them: setName, hosts, passives, arbiters, primary, me, tags
# and lastWrite, by which drivers would look for a replica set's members; topologyVersion, by which they would let
# replies stream; compression and saslSupportedMechs, which end at the agent.
KEPT = (
    "helloOk", "isWritablePrimary", "ismaster", "secondary", "msg", "maxBsonObjectSize", "maxMessageSizeBytes",
    "maxWriteBatchSize", "localTime", "logicalSessionTimeoutMinutes", "connectionId", "minWireVersion",
    "maxWireVersion", "readOnly",
)  # fmt: skip

# What is said to a client whose server has said nothing: the newest driver of 2021 and the oldest server agree on it.
PLACEHOLDER: Mapping[str, Any] = {
    "maxBsonObjectSize": 16 * 1024 * 1024,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "logicalSessionTimeoutMinutes": 30,
    "minWireVersion": 0,
    "maxWireVersion": 21,  # MongoDB 7.0
    "readOnly": False,
}


def hello_name(message: Message) -> str | None:
    """Return by which name a message asks for hello, None if it asks for anything else. Raises ProtocolError."""
    try:
        fields = bson.fields(message.data, *message.body)
        if not isinstance(message, Msg) and message.collection == "admin.$cmd":
            fields = _unwrapped(message.data, fields)
    except bson.BsonError as error:
        raise ProtocolError(str(error)) from error
    name = next(iter(fields), "")
    asked = name in ("hello", "isMaster", "ismaster")
    return name if asked and (isinstance(message, Msg) or message.collection == "admin.$cmd") else None


def named_user(message: Message) -> str:
    """Return the database user whom a hello names ahead of authentication, "" for none. Raises ProtocolError.

    Drivers do so in their connections for commands, where the connection string names a user; their monitors do not.
    """
    data, fields = message.data, asked_fields(message)
    try:
        ahead = fields.get("speculativeAuthenticate")
        inside = bson.fields(data, ahead.start, ahead.end) if ahead and ahead.kind == bson.DOCUMENT else {}
        if next(iter(inside), "") == "authenticate" and "user" in inside:
            return bson.text(data, inside["user"]).removeprefix("CN=")
        if "saslSupportedMechs" in fields:
            return bson.text(data, fields["saslSupportedMechs"]).partition(".")[2]
    except bson.BsonError as fault:
        raise ProtocolError(str(fault)) from fault
    return ""


def asked_fields(message: Message) -> dict[str, Element]:
    """Return the fields of a hello, by name. Raises ProtocolError."""
    try:
        return _unwrapped(message.data, bson.fields(message.data, *message.body))
    except bson.BsonError as error:
        raise ProtocolError(str(error)) from error


def _unwrapped(data: bytes, fields: dict[str, Element]) -> dict[str, Element]:
    """The fields of a query that may stand inside `$query`, where old drivers put it beside a read preference."""
    wrapped = fields.get("$query") or fields.get("query")
    if wrapped is None or wrapped.kind != bson.DOCUMENT or next(iter(fields)) not in ("$query", "query"):
        return fields
    return bson.fields(data, wrapped.start, wrapped.end)


def hello_reply(message: Message, server: Mapping[str, Any] = PLACEHOLDER, identity: str = "") -> dict[str, Any]:
    """Return the answer to a client's hello.

    Args:
        message: the hello.
        server: what the real server has said, fields of KEPT.
        identity: of the server, for clients behind a load balancer.
    """
    name = hello_name(message)
    fields = asked_fields(message)
    primary = server.get("isWritablePrimary", server.get("ismaster", True))
    found: dict[str, Any] = {"isWritablePrimary" if name == "hello" else "ismaster": primary}
    found |= {key: server[key] for key in KEPT if key in server and key not in ("isWritablePrimary", "ismaster")}
    if name != "hello":
        found["helloOk"] = True
    if _true(message.data, fields, "loadBalanced"):
        # The one topology in which drivers take a connection for what it is: everything on it goes to one server.
        found["serviceId"] = Raw(bson.OBJECT_ID, sha256(identity.encode()).digest()[:12])
    return found | {"ok": 1.0}


def _true(data: bytes, fields: Mapping[str, Element], name: str) -> bool:
    return name in fields and bool(bson.number(data, fields[name]))


def server_hello(data: bytes, body: tuple[int, int]) -> dict[str, Any]:
    """Return the fields of KEPT, as they are, from a server's answer to hello. Raises ProtocolError."""
    try:
        fields = bson.fields(data, *body)
        if not _true(data, fields, "ok"):
            raise ProtocolError("the server refuses hello")
        return {name: bson.raw(data, fields[name]) for name in KEPT if name in fields}
    except bson.BsonError as error:
        raise ProtocolError(str(error)) from error


def error(code: tuple[int, str], text: str) -> dict[str, Any]:
    """Return the document by which a command fails."""
    return {"ok": 0.0, "errmsg": text, "code": code[0], "codeName": code[1]}


def authenticated(message: Msg, user: str) -> dict[str, Any]:
    """Return the answer to a client that wants to authenticate: the certificate has said who it is already.

    Args: user: the database user of the session.
    Raises ProtocolError.
    """
    try:
        fields = bson.fields(message.data, *message.body)
        named = bson.text(message.data, fields["user"]) if "user" in fields else user
        mechanism = bson.text(message.data, fields["mechanism"]) if "mechanism" in fields else ""
    except bson.BsonError as fault:
        raise ProtocolError(str(fault)) from fault
    if next(iter(fields)) != "authenticate" or mechanism != "MONGODB-X509":
        advice = "no password is asked here: the client certificate says who you are; leave user and password out"
        return error(AUTHENTICATION_FAILED, advice)
    if named not in (user, f"CN={user}"):
        return error(AUTHENTICATION_FAILED, f"this session is for database user {user!a}, not for the one named")
    return {"dbname": "$external", "user": named, "ok": 1.0}


def allowed_databases(data: bytes, body: tuple[int, int], allows: Callable[[str], bool]) -> dict[str, Any]:
    """Return a server's answer to listDatabases with no more databases in it than the user may see.

    Raises ProtocolError.
    """
    try:
        fields = bson.fields(data, *body)
        listed = fields.get("databases")
        if listed is None or listed.kind != bson.ARRAY:
            return {name: bson.raw(data, one) for name, one in fields.items()}  # an error, or nothing
        kept, total = [], 0
        for one in bson.elements(data, listed.start, listed.end, MAX_LISTED):
            inside = bson.fields(data, one.start, one.end)
            name = bson.text(data, inside["name"])
            if len(name) <= MAX_NAME and allows(name):  # decisions are remembered with the name
                kept.append(bson.raw(data, one))
                total += int(bson.number(data, inside["sizeOnDisk"]) or 0) if "sizeOnDisk" in inside else 0
    except (bson.BsonError, KeyError) as fault:
        raise ProtocolError(f"the server's list of databases cannot be read: {fault}") from fault
    sums = {"totalSize": total, "totalSizeMb": total >> 20}
    rest = {
        name: sums[name] if name in sums else bson.raw(data, one) for name, one in fields.items() if name != "databases"
    }
    return {"databases": kept, **rest}


MAX_LISTED = 50_000  # databases of one server; a name and a size take about 80 bytes, a reply at most 16 MB
