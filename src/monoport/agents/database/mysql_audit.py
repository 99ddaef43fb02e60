"""Which audit events MySQL's commands make.

Belongs here: the meaning of what `wire.mysql.commands` read. Keeping the events is the log's business.
"""

from collections.abc import Mapping
from typing import Any, assert_never

from monoport.agents.database.engine import Entry
from monoport.agents.database.trail import shown
from monoport.wire.mysql.actions import Action, Order, Prepare, Query, Refused, Run, SendFile


def audited(action: Action, rules: Mapping[str, str]) -> list[Entry]:
    """Return the audit events, type and fields, for what a client does.

    rules: which rule decided, by the reason that a refused client was told.
    """
    match action:
        case Query(statement):
            return shown("db.query", statement, {})
        case Prepare(statement):
            return shown("db.prepare", statement, {})
        case Run(statement, number, parameters):
            fields: dict[str, Any] = {"prepared": number, "parameters": parameters}
            if statement is None:
                return [("db.query", {"statement": None, **fields})]
            return shown("db.query", statement, fields)
        case Order(name, argument):
            return [("db.query", {"statement": None, "command": name, "argument": argument})]
        case Refused(why, name, statement):
            fields = {"command": name, "reason": why, "rule": rules.get(why, "")}
            if statement is None:
                return [("db.query.deny", {"statement": None, **fields})]
            return shown("db.query.deny", statement, fields)
        case SendFile():
            return [("db.copy", {"direction": "in"})]
        case _:
            assert_never(action)
