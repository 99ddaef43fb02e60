"""The cluster's audit events where they end up: one append-only table, durable before anybody is told so.

Belongs here: keeping events once each and paging through them, newest first. Making events, and carrying them here from
other hosts, is `monoport.audit`. They are not in `storage`: nobody watches them or swaps them, and they are many.
"""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from monoport.audit.events import MAX_EVENT, Event, EventError
from monoport.audit.segments import SpoolError
from monoport.auth.messages import EventPage
from monoport.auth.refusals import Invalid

Result = TypeVar("Result")

_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
MAX_PAGE = 1000  # events of one answer; at some 500 octets each, half a megabyte
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    time TEXT NOT NULL,
    type TEXT NOT NULL,
    fields TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_time ON events (time, number);
CREATE TABLE IF NOT EXISTS probe (number INTEGER PRIMARY KEY, room BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS events_session_start ON events (json_extract(fields, '$.session'), number)
    WHERE type = 'session.start';
"""
_PROBE = "REPLACE INTO probe VALUES (1, randomblob(?))"


class EventLog:
    """Keeps audit events in an SQLite file of their own.

    Args:
        path: the file, or ":memory:".
    """

    def __init__(self, path: Path | str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eventlog")
        self._path = str(path)
        self._database: sqlite3.Connection | None = None

    async def append(self, events: Iterable[Event]) -> None:
        """Keeps events, each id once; on return they survive a crash of process and machine.

        Raises SpoolError, and EventError for one that would make pages too large to be read, or not JSON.
        """
        rows = [(one.id, _stamp(one.time), one.type, _fields(one)) for one in events]

        def insert(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("INSERT OR IGNORE INTO events (id, time, type, fields) VALUES (?, ?, ?, ?)", rows)

        if rows:
            await self._write(insert)

    async def probe(self) -> None:
        """Tries whether an event could be kept now, in a row of its own; raises SpoolError if not."""

        def fill(database: sqlite3.Connection) -> None:
            with database:
                database.execute(_PROBE, (MAX_EVENT,))

        await self._write(fill)

    async def page(self, limit: int, before: str | None = None, event_type: str | None = None) -> EventPage:
        """Up to `limit` events, the newest first.

        Args:
            before: a page's `next`. event_type: only this type, or every type that begins with `x.` for "x.*".
        """
        count = max(1, min(limit, MAX_PAGE))
        where: list[str] = ["1"]
        values: list[str | int] = []
        if before is not None:
            time, number = _parse_position(before)
            where.append("(time, number) < (?, ?)")
            values += [time, number]
        if event_type is not None:
            family = event_type.endswith(".*")
            where.append("substr(type, 1, ?) = ?" if family else "type = ?")
            prefix = event_type[:-1]
            values += [len(prefix), prefix] if family else [event_type]
        query = (
            "SELECT number, id, time, type, fields FROM events WHERE "  # noqa: S608 - only constants are joined
            f"{' AND '.join(where)} ORDER BY time DESC, number DESC LIMIT ?"
        )
        rows = await self._run(lambda database: database.execute(query, [*values, count + 1]).fetchall())
        return _page(rows, count)

    async def session_start(self, session: str) -> Event | None:
        """The first `session.start` of a session: whoever claims the same session later does not count."""
        query = (
            "SELECT id, time, type, fields FROM events WHERE type = 'session.start' "
            "AND json_extract(fields, '$.session') = ? ORDER BY number LIMIT 1"
        )
        row = await self._run(lambda database: database.execute(query, (session,)).fetchone())
        if row is None:
            return None
        identifier, time, event_type, fields = row
        return Event(identifier, datetime.fromisoformat(time), event_type, json.loads(fields))

    async def close(self) -> None:
        """Closes the file."""
        if self._database is not None:
            await self._run(lambda database: database.close())
            self._database = None
        self._thread.shutdown()

    async def _write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        try:
            await self._run(work)
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"cannot write the audit log {self._path}: {error}") from error

    async def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._opened()))

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            if self._path != ":memory:":  # SQLite would make it 0644
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            database = sqlite3.connect(self._path, check_same_thread=False)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")  # a commit is on the disk before it returns
            database.executescript(_SCHEMA)
            self._database = database
        return self._database


def _page(rows: Sequence[tuple[int, str, str, str, str]], count: int) -> EventPage:
    shown = rows[:count]
    events = tuple(
        Event(id=event_id, time=datetime.fromisoformat(time), type=event_type, fields=json.loads(fields))
        for _, event_id, time, event_type, fields in shown
    )
    return EventPage(events=events, next=f"{shown[-1][2]}/{shown[-1][0]}" if len(rows) > count else None)


def _fields(event: Event) -> str:
    try:
        text = _dumps(dict(event.fields))
    except ValueError:  # a page with it could not be sent
        raise EventError(f"event {event.id} holds a number that is not JSON's") from None
    if len(text) > MAX_EVENT:
        raise EventError(f"event {event.id} takes {len(text)} bytes, limit {MAX_EVENT}")
    return text


def _stamp(time: datetime) -> str:
    """A fixed-width text in UTC, so that the order of texts is the order of times."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _parse_position(text: str) -> tuple[str, int]:
    time, slash, number = text.partition("/")
    if not slash or not number.isdecimal() or len(number) > 18:
        raise Invalid("`before` must be the `next` of a page")
    return time, int(number)
