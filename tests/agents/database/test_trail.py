"""Statements of any length in events of bounded length."""

import pytest

from monoport.agents.database.postgres_audit import audited
from monoport.agents.database.trail import entries
from monoport.audit.events import EventIds, make
from monoport.audit.log import _now
from monoport.wire.postgres.statements import Call, CopyIn, Prepare, Query, Run, Statement, Terminate


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


def test_actions_become_events() -> None:
    one, other = Statement("select 1", 8), Statement("select 2", 8, True)
    assert audited(Query(one)) == [("db.query", {"statement": "select 1"})]
    assert audited(Prepare("s", other)) == [
        ("db.prepare", {"statement": "select 2", "prepared": "s", "length": 8, "shortened": True})
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
