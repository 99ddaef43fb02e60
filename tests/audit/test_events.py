"""Events: identifiers that sort, bounds, one line each; and text made safe to print."""

from __future__ import annotations

import json
import uuid
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.audit.events import (
    MAX_EVENT,
    MAX_FIELDS,
    MAX_TEXT,
    Event,
    EventError,
    EventIds,
    decode,
    encode,
    from_json,
    make,
    to_json,
)
from monoport.audit.log import MemoryLog
from monoport.audit.printable import printable

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def now() -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC)


def test_ids_are_uuids_of_version_7_that_hold_the_time(ids, clock):
    identifier, instant = ids()
    assert uuid.UUID(identifier).version == 7
    assert uuid.UUID(identifier).variant == uuid.RFC_4122
    assert uuid.UUID(identifier).int >> 80 == int(clock.now.timestamp() * 1000)
    assert instant == clock.now


def test_ids_grow_while_the_clock_stands_advances_and_goes_back(ids, clock):
    made = []
    for step in (0, 0, 0.001, 5, -10, 0, 3600, -1):
        clock.advance(step)
        made += [ids()[0] for _ in range(50)]
    assert made == sorted(set(made))


def test_ids_of_two_processes_differ():
    assert EventIds(now)()[0] != EventIds(now)()[0]


@given(st.dictionaries(st.text(max_size=80), values, max_size=8))
def test_any_fields_make_an_event_that_survives_its_line(fields):
    event = make(EventIds(now), "test.any", fields)
    line = encode(event)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line.isascii()
    assert decode(line) == event
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


@given(st.binary(max_size=200))
def test_garbage_is_no_line(data):
    with pytest.raises(EventError):
        decode(data)


@given(st.data())
def test_a_changed_line_is_noticed(data):
    line = bytearray(encode(make(EventIds(now), "db.query", {"sql": "SELECT 1"})))
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EventError):
        decode(bytes(line))


@pytest.mark.parametrize("data", [b"not json", b"[]", b"[" * 5000])
def test_a_line_with_a_right_checksum_must_still_be_an_event(data):
    with pytest.raises(EventError):
        decode(b"%08x %s\n" % (zlib.crc32(data), data))


def test_long_fields_are_cut_and_it_is_said(ids):
    event = make(ids, "db.query", {"sql": "x" * (MAX_TEXT + 1), "user": "alice@c"})
    assert event.fields == {"sql": "x" * MAX_TEXT, "user": "alice@c", "truncated": True}
    many = make(ids, "db.query", {"parameters": list(range(MAX_FIELDS + 1))})
    assert many.fields == {"parameters": list(range(MAX_FIELDS)), "truncated": True}
    wide = make(ids, "db.query", {f"f{number}": 1 for number in range(MAX_FIELDS + 1)})
    assert len(wide.fields) == MAX_FIELDS + 1
    assert wide.fields["truncated"] is True


def test_an_event_too_large_as_a_whole_keeps_shorter_texts(ids):
    event = make(ids, "db.query", {f"f{number}": "é" * MAX_TEXT for number in range(MAX_FIELDS)})
    assert len(encode(event)) <= MAX_EVENT + 10
    assert event.fields["truncated"] is True
    assert event.fields["f0"] == "é" * (MAX_TEXT // 256)


def test_even_the_largest_event_is_kept_by_its_type(ids):
    event = make(ids, "db.query", {"rows": [["x" * 99] * MAX_FIELDS] * MAX_FIELDS})
    assert event.fields == {"truncated": True}


def test_depth_ends_in_text(ids):
    event = make(ids, "db.query", {"a": {"b": {"c": {"d": {"e": 1}}}}})
    assert event.fields == {"a": {"b": {"c": {"d": "{'e': 1}"}}}}


@pytest.mark.parametrize("type_", ["", "db", "DB.query", "db.query\n", "db..query", ".db", "a.b.c.d.e", "db.Ü"])
def test_a_type_is_dotted_words(ids, type_):
    with pytest.raises(EventError, match="not a type"):
        make(ids, type_, {})


def test_an_event_from_elsewhere_must_be_one(ids):
    good = to_json(make(ids, "user.login", {"user": "alice"}))
    for change in (
        {"id": "1"},
        {"id": None},
        {"time": "noon"},
        {"time": "2030-01-01T00:00:00"},
        {"time": "0001-01-01T00:00:00+14:00"},
        {"type": "login"},
        {"fields": []},
        {"more": 1},
    ):
        with pytest.raises(EventError):
            from_json(good | change)
    for other in (None, [], {}, {key: good[key] for key in ("id", "time", "type")}):
        with pytest.raises(EventError):
            from_json(other)


def test_an_event_built_too_large_is_refused(ids):
    event = make(ids, "db.query", {})
    with pytest.raises(EventError, match=f"limit {MAX_EVENT}"):
        encode(Event(event.id, event.time, event.type, {"x": "y" * MAX_EVENT}))


async def test_the_log_in_memory_keeps_what_was_emitted(clock):
    log = MemoryLog(clock)
    await log.emit("session.start", user="alice@c", connection="1", type="ssh")
    assert [(event.type, event.fields["type"], event.time) for event in log.events] == [
        ("session.start", "ssh", clock.now)
    ]


# --- printing


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 C:\\path", "plain é 漢字 C:\\path"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("line\r\nforged", "line\\r\\nforged"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b2J", "\\x9b2J"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("back\\slash\n", "back\\\\slash\\n"),
        ("", ""),
    ],
)
def test_what_does_not_print_is_escaped(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_whatever_is_shown_prints_and_can_be_encoded(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
