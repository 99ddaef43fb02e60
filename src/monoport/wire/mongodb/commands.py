"""Which databases a command may touch, from its message alone.

Belongs here: the names of commands and of the fields by which they reach beyond `$db`. Whether somebody may go there is
the engine's to ask. A command that is not known to stay within its `$db` is taken for one about the whole server.
Source: https://www.mongodb.com/docs/manual/reference/command/
"""

from collections.abc import Iterator
from dataclasses import dataclass

from monoport.wire.mongodb import bson
from monoport.wire.mongodb.bson import ARRAY, DOCUMENT, STRING, BsonError, Element
from monoport.wire.mongodb.messages import Msg, ProtocolError

ADMIN = "admin"  # the database whose commands are about the whole server
MAX_NAME = 63  # bytes of a database's name, the server's own limit
MAX_NAMESPACE = 255  # bytes of database, dot and collection
MAX_DEPTH = 32  # documents within documents of a pipeline that are looked into; servers stop at 20 pipelines
MAX_LOOK = 20_000  # elements of a pipeline that are looked at, which takes 20 ms: more is refused, not passed unread
MAX_NAMESPACES = 4096  # that one bulkWrite names

HELLO = frozenset({"hello", "isMaster", "ismaster"})
AUTHENTICATION = frozenset({"authenticate", "saslStart", "saslContinue"})

# About the connection or the client's own sessions, on whatever database they are sent to.
_OWN = frozenset({
    "abortTransaction", "buildInfo", "buildinfo", "commitTransaction", "connectionStatus", "endSessions",
    "getLastError", "getlasterror", "listCommands", "ping", "refreshSessions", "startSession", "whatsmyuri",
})  # fmt: skip

# Within `$db`, as far as the fields that are looked at below do not say otherwise.
_WITHIN = frozenset({
    "aggregate", "analyze", "cloneCollectionAsCapped", "collMod", "collStats", "collstats", "compact",
    "convertToCapped", "count", "create", "createIndexes", "createSearchIndexes", "dbHash", "dbStats", "dbstats",
    "delete", "deleteIndexes", "distinct", "drop", "dropDatabase", "dropIndexes", "dropSearchIndex", "explain",
    "filemd5", "find", "findAndModify", "findandmodify", "getMore", "insert", "killCursors", "listCollections",
    "listIndexes", "listSearchIndexes", "mapReduce", "mapreduce", "planCacheClear", "planCacheClearFilters",
    "planCacheListFilters", "planCacheSetFilter", "reIndex", "update", "updateSearchIndex", "validate",
})  # fmt: skip

# Nobody's: they run what cannot be seen, as somebody else, or belong to servers among themselves.
_NOBODY = frozenset({
    "$eval", "applyOps", "clone", "cloneCollection", "copydb", "copydbgetnonce", "copydbsaslstart", "doTxn", "eval",
    "getnonce", "godinsert", "internalRenameIfOptionsAndIndexesMatch", "logout", "mergeAuthzCollections",
    "replSetUpdatePosition",
})  # fmt: skip

# Fields of the message rather than of the command; others that begin so are how servers speak for somebody else.
_GENERIC = frozenset({"$db", "$readPreference", "$clusterTime"})

# Document sequences that a command may bring beside its body; anywhere else one could stand for a field unseen.
_SEQUENCES = {
    "insert": frozenset({"documents"}),
    "update": frozenset({"updates"}),
    "delete": frozenset({"deletes"}),
    "bulkWrite": frozenset({"ops", "nsInfo"}),
}

# Stages that read and write nothing but the documents that pass: what is in them is not looked at.
_PLAIN_STAGES = frozenset({
    "$addFields", "$bucket", "$bucketAuto", "$count", "$densify", "$documents", "$fill", "$geoNear", "$group",
    "$limit", "$match", "$project", "$redact", "$replaceRoot", "$replaceWith", "$sample", "$search", "$searchMeta",
    "$set", "$setWindowFields", "$skip", "$sort", "$sortByCount", "$unset", "$unwind", "$vectorSearch",
})  # fmt: skip
_TARGETS = frozenset({"$out", "$merge", "$lookup", "$graphLookup", "$unionWith"})
# Fields that name a database within what these stages hold; "" is the stage's own value.
_TARGET_FIELDS = frozenset({"", "into", "from", "atlas"})


@dataclass(frozen=True, slots=True)
class Command:
    """A command as far as it matters: `databases` are all that it may touch, its own first.

    `whole`: it is, or may be, about the whole server. `own`: it touches none at all. `refused`: why nobody may run it.
    """

    name: str
    database: str
    collection: str = ""
    databases: tuple[str, ...] = ()
    whole: bool = False
    own: bool = False
    refused: str = ""

    @property
    def lists(self) -> bool:
        """Whether its reply names all databases of the server."""
        return self.name == "listDatabases"


def read(message: Msg) -> Command:
    """Return what a message asks for. Raises ProtocolError for one that could be read in two ways."""
    try:
        return _read(message)
    except BsonError as error:
        raise ProtocolError(str(error)) from error


def _read(message: Msg) -> Command:
    data = message.data
    fields = bson.fields(data, *message.body)
    if not fields:
        raise ProtocolError("a command without a name")
    first = next(iter(fields.values()))
    if "$db" not in fields:
        raise ProtocolError("a command that names no $db")
    database = _database(bson.text(data, fields["$db"]))
    for name in fields:
        if name.startswith("$") and name not in _GENERIC and name != first.name:
            raise ProtocolError(f"field {_shown(name)} is not for clients")
    for section in message.sections:
        if section.name in fields:
            raise ProtocolError(f"{section.name[:64]!r} both in the body and as a document sequence")
        if section.name not in _SEQUENCES.get(first.name, ()):
            raise ProtocolError(f"document sequence {section.name[:64]!r} in {first.name[:64]!r}")
    return _command(message, fields, first, database)


def _command(message: Msg, fields: dict[str, Element], first: Element, database: str, inner: bool = False) -> Command:
    name, data = first.name, message.data
    if name in HELLO or name in AUTHENTICATION or name in _OWN or name == "listDatabases":
        return Command(name, database, own=True)
    if name in _NOBODY or name.startswith("_"):
        return Command(name, database, databases=(database,), refused=f"{_shown(name)} is not for users")
    if name == "bulkWrite":
        return Command(name, database, databases=_bulk(message, fields))
    collection = bson.text(data, first) if first.kind == STRING else ""
    if name == "renameCollection":
        if "to" not in fields:
            raise ProtocolError("renameCollection without a target")
        target = bson.text(data, fields["to"])
        return Command(name, database, collection, databases=(_namespace(collection), _namespace(target)))
    if name in ("dataSize", "datasize"):
        return Command(name, database, collection, databases=(database, _namespace(collection)))
    if name == "explain" and not inner:
        return _explained(message, first, database)
    if name not in _WITHIN or (inner and name == "explain"):
        return Command(name, database, collection, databases=(database,), whole=True)
    if name == "getMore" and "collection" in fields:
        collection = bson.text(data, fields["collection"])
    also = list(_beyond(data, fields))
    return Command(name, database, collection, databases=tuple(dict.fromkeys((database, *also))))


def _explained(message: Msg, first: Element, database: str) -> Command:
    """What an explain explains: executionStats may run it."""
    if first.kind != DOCUMENT:
        raise ProtocolError("explain of something that is no command")
    fields = bson.fields(message.data, first.start, first.end)
    if not fields:
        raise ProtocolError("explain of a command without a name")
    if "$db" in fields and bson.text(message.data, fields["$db"]) != database:
        raise ProtocolError("explain of a command for another $db")
    inside = _command(message, fields, next(iter(fields.values())), database, inner=True)
    return Command(
        "explain", database, inside.collection, inside.databases or (database,), inside.whole, False, inside.refused
    )


def _bulk(message: Msg, fields: dict[str, Element]) -> tuple[str, ...]:
    """The databases of a bulkWrite, which runs on `admin` and names its namespaces one by one."""
    data = message.data
    places = [place for section in message.sections if section.name == "nsInfo" for place in section.documents]
    if "nsInfo" in fields:
        listed = fields["nsInfo"]
        if listed.kind != ARRAY:
            raise ProtocolError("bulkWrite whose nsInfo is no list")
        for one in bson.elements(data, listed.start, listed.end, MAX_NAMESPACES):
            if one.kind != DOCUMENT:
                raise ProtocolError("bulkWrite with a namespace that is no document")
            places.append((one.start, one.end))
    if not 0 < len(places) <= MAX_NAMESPACES:
        raise ProtocolError(f"bulkWrite of {len(places)} namespaces, limit {MAX_NAMESPACES}")
    found: dict[str, None] = {}
    for start, end in places:
        inside = bson.fields(data, start, end)
        if "ns" not in inside:
            raise ProtocolError("bulkWrite with a namespace that has no name")
        found[_namespace(bson.text(data, inside["ns"]))] = None
    return tuple(found)


def _beyond(data: bytes, fields: dict[str, Element]) -> Iterator[str]:
    """Databases that fields of a command name beside `$db`."""
    if "pipeline" in fields:
        pipeline = fields["pipeline"]
        if pipeline.kind not in (ARRAY, DOCUMENT):
            raise ProtocolError("a pipeline that is no list")
        yield from _Pipeline(data).databases(pipeline)
    out = fields.get("out")
    if out is not None and out.kind == DOCUMENT:  # of mapReduce
        inside = bson.fields(data, out.start, out.end)
        if "db" in inside:
            yield _database(bson.text(data, inside["db"]))


class _Pipeline:
    """Looks for other databases in a pipeline, and in the pipelines within it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = MAX_LOOK

    def databases(self, pipeline: Element) -> Iterator[str]:
        """Every database that a stage names. Raises ProtocolError where that cannot be told."""
        for stage in self._inside(pipeline):
            if stage.kind != DOCUMENT:
                raise ProtocolError("a stage that is no document")
            for operator in self._inside(stage):
                if operator.name not in _PLAIN_STAGES:
                    yield from self._look(operator, 0)

    def _inside(self, element: Element) -> list[Element]:
        found = bson.elements(self._data, element.start, element.end, self._left)
        self._left -= len(found)
        return found

    def _look(self, element: Element, depth: int) -> Iterator[str]:
        """Databases named in a value that may hold further stages at any depth."""
        if depth > MAX_DEPTH:
            raise ProtocolError(f"a pipeline nested deeper than {MAX_DEPTH}")
        if element.name.startswith("$_internal"):
            raise ProtocolError("a stage that servers use among themselves")
        if element.name in _TARGETS:
            yield from self._target(element, "")
        if element.kind not in (DOCUMENT, ARRAY):
            return
        for one in self._inside(element):
            if one.name not in _PLAIN_STAGES:
                yield from self._look(one, depth + 1)

    def _target(self, element: Element, field: str) -> Iterator[str]:
        if element.kind != DOCUMENT or field not in _TARGET_FIELDS:
            return
        for one in self._inside(element):
            if one.name == "db":
                yield _database(bson.text(self._data, one))
            elif one.name in _TARGET_FIELDS:
                yield from self._target(one, one.name)


def _namespace(text: str) -> str:
    """The database of a namespace. Raises ProtocolError."""
    database, dot, collection = text.partition(".")
    if not dot or not collection or len(text.encode()) > MAX_NAMESPACE:
        raise ProtocolError(f"{_shown(text)} is no namespace")
    return _database(database)


def _database(name: str) -> str:
    """The name, if a database can be called so. Raises ProtocolError."""
    if not name or len(name.encode()) > MAX_NAME:
        raise ProtocolError(f"a database's name of {len(name.encode())} bytes, expected 1 to {MAX_NAME}")
    if not name.isprintable() or any(char in '/\\. "*<>:|?' for char in name):
        raise ProtocolError(f"{_shown(name)} cannot be a database's name")
    return name


def _shown(text: str) -> str:
    return ascii(text[:64])
