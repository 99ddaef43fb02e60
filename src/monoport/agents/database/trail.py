"""How a statement of any length becomes audit events, each within the log's bounds.

Belongs here: splitting. What the log does not keep in one event goes into several, so that nothing can hide behind a
long beginning.
"""

import json
from collections.abc import Mapping
from typing import Any

from monoport.agents.database.engine import Entry
from monoport.wire.statement import Statement

PIECE = 16_000  # characters of a statement in one event, below audit.events.MAX_TEXT
PIECE_ESCAPED = 4_000  # the same where JSON writes up to twelve octets for a character; the rest fits MAX_EVENT too


def entries(kind: str, text: str, fields: dict[str, Any], end: str = "") -> list[Entry]:
    """Return the events of one statement: `kind` with the beginning and all fields, then `<kind>.more` with the rest.

    Args:
        kind: type of the event, such as "db.query".
        text: the statement, or its beginning.
        fields: of the first event; it gets `parts` if there is more than one.
        end: the statement's last part, if `text` is only the beginning; it goes into `<kind>.end`.
    """
    pieces, last = _pieces(text), _pieces(end) if end else []
    if len(pieces) + len(last) == 1:
        return [(kind, {"statement": text, **fields})]
    first = (kind, {"statement": pieces[0], "parts": len(pieces) + len(last), **fields})
    more = [(f"{kind}.more", {"statement": piece, "part": n}) for n, piece in enumerate(pieces[1:], 2)]
    ends = [(f"{kind}.end", {"statement": piece, "part": n}) for n, piece in enumerate(last, len(pieces) + 1)]
    return [first, *more, *ends]


def shown(kind: str, statement: Statement, fields: Mapping[str, Any]) -> list[Entry]:
    """Return the events of one statement, with what says of a very long one which it was."""
    if statement.sha256:
        fields = {**fields, "length": statement.length, "sha256": statement.sha256, "omitted": statement.omitted}
    return entries(kind, statement.text, dict(fields), statement.end)


def _pieces(text: str) -> list[str]:
    size = PIECE
    if len(text) > PIECE_ESCAPED and len(json.dumps(text)) > 2 * len(text):
        size = PIECE_ESCAPED
    return [text[start : start + size] for start in range(0, max(1, len(text)), size)]
