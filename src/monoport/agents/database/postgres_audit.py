"""Which audit events PostgreSQL's messages make.

Belongs here: the meaning of what `wire.postgres.statements` read. Keeping the events is the log's business.
"""

from typing import Any, assert_never

from monoport.agents.database.engine import Entry
from monoport.agents.database.trail import shown
from monoport.wire.postgres.statements import (
    Action,
    Call,
    CopyIn,
    Prepare,
    Query,
    Run,
    Terminate,
)


def audited(action: Action) -> list[Entry]:
    """Return the audit events, type and fields, for what a client does."""
    match action:
        case Query(statement):
            return shown("db.query", statement, {})
        case Prepare(name, statement):
            return shown("db.prepare", statement, {"prepared": name})
        case Run(candidates, name, portal, parameters):
            fields: dict[str, Any] = {"prepared": name, "portal": portal, "parameters": parameters}
            if not candidates:
                return [("db.query", {"statement": None, **fields})]
            if len(candidates) > 1:
                fields["candidates"] = len(candidates)
            others = (entry for one in candidates[1:] for entry in shown("db.query.candidate", one, {"prepared": name}))
            return [*shown("db.query", candidates[0], fields), *others]
        case Call(function):
            return [("db.query", {"statement": None, "function": function})]
        case CopyIn():
            return [("db.copy", {"direction": "in"})]
        case Terminate():
            return []
        case _:
            assert_never(action)
