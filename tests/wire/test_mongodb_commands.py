"""Which databases a MongoDB command may touch."""

from __future__ import annotations

import struct
from typing import Any

import bson as pymongo_bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.mongodb import commands
from monoport.wire.mongodb.commands import Command, read
from monoport.wire.mongodb.messages import HEADER, MSG, Msg, ProtocolError, parse

STRANGE = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


def raw(body: bytes, *sections: tuple[str, list[dict[str, Any]]]) -> Msg:
    data = bytes(4) + b"\0" + body
    for name, documents in sections:
        inside = name.encode() + b"\0" + b"".join(map(pymongo_bson.encode, documents))
        data += b"\1" + struct.pack("<i", 4 + len(inside)) + inside
    found = parse(HEADER.pack(16 + len(data), 1, 0, MSG) + data)
    assert isinstance(found, Msg)
    return found


def command(document: dict[str, Any], *sections: tuple[str, list[dict[str, Any]]], db: str = "app") -> Command:
    return read(raw(pymongo_bson.encode({**document, "$db": db}), *sections))


def pipeline(*stages: Any) -> tuple[str, ...]:
    return command({"aggregate": "c", "pipeline": list(stages), "cursor": {}}).databases


def test_an_ordinary_command() -> None:
    assert command({"find": "people", "filter": {"db": "x"}}) == Command("find", "app", "people", ("app",))
    assert command({"insert": "people"}, ("documents", [{"n": 1}])) == Command("insert", "app", "people", ("app",))
    assert command({"getMore": 7, "collection": "people"}) == Command("getMore", "app", "people", ("app",))
    assert command({"dropDatabase": 1}) == Command("dropDatabase", "app", "", ("app",))
    assert command({"find": "c", "$readPreference": {"mode": "primary"}, "$clusterTime": {}}).databases == ("app",)


def test_commands_about_the_connection_touch_nothing() -> None:
    for name in ("ping", "hello", "isMaster", "endSessions", "saslStart", "authenticate", "listDatabases"):
        found = command({name: 1}, db="admin")
        assert (found.own, found.databases, found.whole) == (True, (), False)
    assert command({"listDatabases": 1}).lists
    assert not command({"ping": 1}).lists


@pytest.mark.parametrize("name", ["serverStatus", "createUser", "currentOp", "shardCollection", "brandNew", "getLog"])
def test_what_is_not_known_to_stay_within_its_database_is_about_the_server(name: str) -> None:
    found = command({name: "x"})
    assert (found.whole, found.own, found.databases, found.refused) == (True, False, ("app",), "")


@pytest.mark.parametrize("name", ["applyOps", "eval", "$eval", "copydb", "clone", "logout", "_shardsvrMovePrimary"])
def test_some_commands_are_for_nobody(name: str) -> None:
    assert command({name: 1}, db="admin").refused == f"'{name}' is not for users"


@pytest.mark.parametrize(
    ("stage", "others"),
    [
        ({"$match": {"$out": {"db": "other", "coll": "c"}}}, ()),
        ({"$out": "c"}, ()),
        ({"$out": {"db": "other", "coll": "c"}}, ("other",)),
        ({"$out": {"atlas": {"db": "other", "coll": "c"}}}, ("other",)),
        ({"$merge": "c"}, ()),
        ({"$merge": {"into": "c"}}, ()),
        ({"$merge": {"into": {"db": "other", "coll": "c"}, "whenMatched": [{"$set": {"db": 1}}]}}, ("other",)),
        ({"$lookup": {"from": "c", "as": "db"}}, ()),
        ({"$lookup": {"from": {"db": "other", "coll": "c"}, "as": "x"}}, ("other",)),
        ({"$lookup": {"from": "c", "pipeline": [{"$unionWith": {"db": "other", "coll": "c"}}]}}, ("other",)),
        ({"$graphLookup": {"from": {"db": "other", "coll": "c"}}}, ("other",)),
        ({"$unionWith": {"coll": "c", "pipeline": [{"$lookup": {"from": {"db": "b", "coll": "c"}}}]}}, ("b",)),
        ({"$facet": {"one": [{"$merge": {"into": {"db": "b", "coll": "c"}}}]}}, ("b",)),
        ({"$rankFusion": {"input": {"pipelines": {"a": [{"$lookup": {"from": {"db": "b"}}}]}}}}, ("b",)),
        ({"$match": {}, "$out": {"db": "other", "coll": "c"}}, ("other",)),
        ({"$future": {"deep": [{"$out": {"db": "other"}}]}}, ("other",)),
    ],
)
def test_stages_that_reach_other_databases(stage: dict[str, Any], others: tuple[str, ...]) -> None:
    assert pipeline({"$match": {}}, stage) == ("app", *others)


def test_a_database_named_twice_in_one_stage_counts_twice() -> None:
    inner = pymongo_bson.encode({"db": "app"})[4:-1] + pymongo_bson.encode({"db": "other"})[4:-1]
    out = b"\3$out\0" + struct.pack("<i", 5 + len(inner)) + inner + b"\0"
    stage = struct.pack("<i", 5 + len(out)) + out + b"\0"
    listed = b"\3" + b"0\0" + stage
    array = struct.pack("<i", 5 + len(listed)) + listed + b"\0"
    start = pymongo_bson.encode({"aggregate": "c", "$db": "app"})[4:-1]
    body = start + b"\4pipeline\0" + array
    assert read(raw(struct.pack("<i", 5 + len(body)) + body + b"\0")).databases == ("app", "other")


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ("x", "no list"),
        (["x"], "no document"),
        ([{"$_internalInhibitOptimization": {}}], "servers use among themselves"),
        ([{"$facet": {"a": [{"$_internalX": 1}]}}], "servers use among themselves"),
        ([{"$out": {"db": 7}}], "not a string"),
        ([{"$out": {"db": "a.b"}}], "cannot be a database's name"),
    ],
)
def test_pipelines_that_cannot_be_read(stages: Any, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        command({"aggregate": "c", "pipeline": stages})


def test_pipelines_are_looked_into_within_bounds() -> None:
    deep: Any = {}
    for _ in range(commands.MAX_DEPTH + 2):
        deep = {"$future": deep}
    with pytest.raises(ProtocolError, match="nested deeper than 32"):
        pipeline(deep)
    with pytest.raises(ProtocolError, match="more than"):
        pipeline({"$future": list(range(commands.MAX_LOOK))})
    assert pipeline({"$match": {"n": {"$in": list(range(commands.MAX_LOOK))}}}) == ("app",)


def test_views_and_map_reduce() -> None:
    reaching = [{"$lookup": {"from": {"db": "other", "coll": "c"}}}]
    assert command({"create": "v", "viewOn": "c", "pipeline": reaching}).databases == ("app", "other")
    assert command({"mapReduce": "c", "out": {"replace": "r", "db": "other"}}).databases == ("app", "other")
    assert command({"mapReduce": "c", "out": {"inline": 1}}).databases == ("app",)
    assert command({"mapReduce": "c", "out": "r"}).databases == ("app",)


def test_commands_that_name_namespaces() -> None:
    assert command({"renameCollection": "a.c", "to": "b.c"}, db="admin").databases == ("a", "b")
    assert command({"dataSize": "other.c"}).databases == ("app", "other")
    namespaces = [{"ns": "a.c"}, {"ns": "b.c.d"}, {"ns": "a.d"}]
    ops = [{"insert": 0, "document": {}}]
    assert command({"bulkWrite": 1}, ("ops", ops), ("nsInfo", namespaces), db="admin").databases == ("a", "b")
    assert command({"bulkWrite": 1, "ops": ops, "nsInfo": namespaces}, db="admin").databases == ("a", "b")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"renameCollection": "a.c"}, "without a target"),
        ({"renameCollection": "a", "to": "b.c"}, "no namespace"),
        ({"renameCollection": "a.", "to": "b.c"}, "no namespace"),
        ({"renameCollection": "a.c", "to": 1}, "not a string"),
        ({"renameCollection": "a.c", "to": "b." + "c" * 300}, "no namespace"),
        ({"dataSize": 1}, "no namespace"),
        ({"bulkWrite": 1}, "0 namespaces"),
        ({"bulkWrite": 1, "nsInfo": "a"}, "no list"),
        ({"bulkWrite": 1, "nsInfo": ["a"]}, "no document"),
        ({"bulkWrite": 1, "nsInfo": [{"x": 1}]}, "no name"),
        ({"explain": 1}, "no command"),
        ({"explain": {}}, "without a name"),
        ({"explain": {"find": "c", "$db": "other"}}, "another"),
        ({"find": "c", "$audit": {}}, "not for clients"),
        ({"find": "a\0b"}, "NUL"),
    ],
)
def test_what_could_be_read_in_two_ways_is_not_read(document: dict[str, Any], why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        command(document)


def test_what_is_explained_counts() -> None:
    out = {"aggregate": "c", "pipeline": [{"$out": {"db": "other", "coll": "c"}}]}
    assert command({"explain": out, "verbosity": "executionStats"}).databases == ("app", "other")
    assert command({"explain": {"find": "c", "$db": "app"}}) == Command("explain", "app", "c", ("app",))
    assert command({"explain": {"currentOp": 1}}).whole
    assert command({"explain": {"applyOps": []}}).refused
    assert command({"explain": {"explain": {"find": "c"}}}).whole
    assert command({"explain": {"ping": 1}}).databases == ("app",)


def test_the_database_is_named_once_and_is_a_name() -> None:
    body = pymongo_bson.encode({"find": "c", "$db": "app"})[4:-1] + pymongo_bson.encode({"$db": "other"})[4:-1]
    with pytest.raises(ProtocolError, match="twice"):
        read(raw(struct.pack("<i", 5 + len(body)) + body + b"\0"))
    body = pymongo_bson.encode({"find": "c"})[4:-1] + pymongo_bson.encode({"find": "d", "$db": "app"})[4:-1]
    with pytest.raises(ProtocolError, match="twice"):
        read(raw(struct.pack("<i", 5 + len(body)) + body + b"\0"))
    with pytest.raises(ProtocolError, match=r"names no \$db"):
        read(raw(pymongo_bson.encode({"find": "c"})))
    with pytest.raises(ProtocolError, match="without a name"):
        read(raw(pymongo_bson.encode({})))
    with pytest.raises(ProtocolError, match="not a string"):
        read(raw(pymongo_bson.encode({"find": "c", "$db": 1})))
    for name in ("", "x" * 64, "a b", "a.b", "a/b", "a\x1b[2J", 'a"b', "a\\b"):
        with pytest.raises(ProtocolError, match="name"):
            command({"find": "c"}, db=name)


@pytest.mark.parametrize(
    ("document", "sections", "why"),
    [
        ({"find": "c"}, [("documents", [{}])], "in 'find'"),
        ({"aggregate": "c"}, [("pipeline", [{"$out": {"db": "other"}}])], "in 'aggregate'"),
        ({"insert": "c", "documents": []}, [("documents", [{}])], "both"),
        ({"insert": "c"}, [("$db", [{}])], "both"),
        ({"insert": "c"}, [("nsInfo", [{}])], "in 'insert'"),
    ],
)
def test_a_document_sequence_stands_for_no_other_field(document: Any, sections: Any, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        command(document, *sections)


@given(st.dictionaries(STRANGE, STRANGE | st.integers(0, 9) | st.dictionaries(STRANGE, STRANGE)), STRANGE)
def test_whatever_is_asked_is_within_its_database_or_says_so(document: dict[str, Any], db: str) -> None:
    try:
        found = command(document, db=db)
    except ProtocolError:
        return
    assert found.database == db
    assert found.own or found.refused or db in found.databases
