"""The parameters that a client sets when it starts a session, as one bounded line for the audit log.

Belongs here: bounds and escaping. Which parameters a protocol allows is its engine's.
"""

import json
from collections.abc import Mapping

LIMIT = 1024  # characters of the line
MOST = 16  # parameters named; drivers send half a dozen
FIRST = "options"  # PostgreSQL's name for what sets anything else, so it comes before what could crowd it out


def shown(parameters: Mapping[str, str]) -> str:
    """Return `name="value" …` in ASCII, at most LIMIT characters; long values keep their beginning and their end.

    Args:
        parameters: as the client sent them, without user and database.
    """
    names = sorted(parameters, key=lambda name: name != FIRST)
    entries = [f"{json.dumps(name)[1:-1]}={json.dumps(parameters[name])}" for name in names[:MOST]]
    room = LIMIT
    if len(names) > MOST:
        entries.append(f"[{len(names) - MOST} more]")
    room -= len(entries)  # the blanks between them
    if sum(map(len, entries)) > room:
        share = room // len(entries)
        long = [entry for entry in entries if len(entry) > share]
        share = (room - sum(len(entry) for entry in entries if len(entry) <= share)) // len(long)
        entries = [_cut(entry, share) for entry in entries]
    return " ".join(entries)


def _cut(entry: str, size: int) -> str:
    if len(entry) <= size:
        return entry
    mark = f"[{len(entry)} characters]"
    half = (size - len(mark)) // 2
    return entry[:half] + mark + entry[-half:]
