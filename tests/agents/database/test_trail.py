"""Statements of any length in events of bounded length."""

import pytest

from monoport.agents.database.postgres_audit import audited
from monoport.agents.database.trail import entries
from monoport.audit.events import EventIds, make
from monoport.audit.log import _now
from monoport.wire.postgres.statements import (
    MAX_END,
    MAX_STATEMENT,
    Call,
    CopyIn,
    Prepare,
    Query,
    Run,
    Statement,
    Terminate,
)


@pytest.mark.parametrize("letter", ["x", "ü", "\x01", "\U0001f600", "\n"])
@pytest.mark.parametrize("length", [0, 10, 4_001, 16_001, 1_000_000])
def test_nothing_is_lost_and_nothing_is_cut_by_the_log(letter: str, length: int) -> None:
    text = "select '" + letter * length + "'; drop table t"
    ids = EventIds(_now)
    made = [make(ids, kind, fields) for kind, fields in entries("db.query", text, {"prepared": "p" * 63})]
    assert "".join(str(one.fields["statement"]) for one in made) == text
    assert not any("truncated" in one.fields for one in made)
    assert {one.type for one in made[1:]} <= {"db.query.more"}
    assert made[0].fields.get("parts", 1) == len(made)


@pytest.mark.parametrize("letter", ["x", "ü", "\x01"])
def test_beginning_and_end_are_told_apart(letter: str) -> None:
    text, end = "select " + letter * 1_048_569, letter * 60_000 + "; drop table t"
    ids = EventIds(_now)
    made = [make(ids, kind, fields) for kind, fields in entries("db.query", text, {"omitted": 7}, end)]
    ends = [one for one in made if one.type == "db.query.end"]
    assert "".join(str(one.fields["statement"]) for one in made if one not in ends) == text
    assert "".join(str(one.fields["statement"]) for one in ends) == end
    assert [one.fields["part"] for one in made[1:]] == list(range(2, len(made) + 1))
    assert made[0].fields["parts"] == len(made)
    assert not any("truncated" in one.fields for one in made)


def test_actions_become_events() -> None:
    one, other = Statement("select 1", 8), Statement("select", 2_000_000, "drop", "ab" * 32)
    assert audited(Query(one)) == [("db.query", {"statement": "select 1"})]
    shortened = {"length": 2_000_000, "sha256": "ab" * 32, "omitted": 2_000_000 - MAX_STATEMENT - MAX_END}
    assert audited(Prepare("s", other)) == [
        ("db.prepare", {"statement": "select", "parts": 2, "prepared": "s", **shortened}),
        ("db.prepare.end", {"statement": "drop", "part": 2}),
    ]
    ran = {"prepared": "s", "portal": "", "parameters": 2}
    assert audited(Run((one,), "s", "", 2)) == [("db.query", {"statement": "select 1", **ran})]
    assert audited(Run((), "s", "", 2)) == [("db.query", {"statement": None, **ran})]
    assert audited(Run((one, Statement("b", 1)), "s", "", 2)) == [
        ("db.query", {"statement": "select 1", **ran, "candidates": 2}),
        ("db.query.candidate", {"statement": "b", "prepared": "s"}),
    ]
    assert audited(Call(5)) == [("db.query", {"statement": None, "function": 5})]
    assert audited(CopyIn()) == [("db.copy", {"direction": "in"})]
    assert audited(Terminate()) == []
