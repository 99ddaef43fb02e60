"""The format of recordings: what is written is read back, split characters stay whole, other files refused."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.audit import asciicast
from monoport.audit.asciicast import CastError, Event, Header, Output, decode_event, decode_header

texts = st.text(st.characters(exclude_categories=["Cs"]))
sides = st.integers(1, asciicast.MAX_SIDE)


@given(sides, sides, st.integers(0, 2**39), st.dictionaries(texts, texts, max_size=4), st.none() | texts)
def test_a_header_is_read_back(width, height, timestamp, session, command):
    header = Header(width, height, timestamp, session, "alice on web", command, "xterm")
    line = asciicast.encode_header(header)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert decode_header(line) == header


@given(st.floats(0, 1e7), st.sampled_from(asciicast.KINDS), texts)
def test_an_event_is_one_line_and_is_read_back(time, kind, data):
    line = asciicast.encode_event(Event(time, kind, data))
    assert line.count(b"\n") == 1
    found = decode_event(line)
    assert (found.kind, found.data) == (kind, data)
    assert abs(found.time - time) <= 1e-6


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_a_terminals_bytes_give_the_same_text_however_they_are_split(data, cuts):
    output = Output()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [output.text(data[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) + output.text(b"", final=True) == data.decode("utf-8", "replace")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_an_error(line):
    try:
        found = decode_event(line)
    except CastError:
        return
    assert found.kind in asciicast.KINDS


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | texts, lambda one: st.lists(one) | st.dictionaries(texts, one)
    )
)
def test_any_json_is_a_header_or_an_error(document):
    try:
        found = decode_header(json.dumps(document).encode())
    except CastError:
        return
    assert 0 < found.width <= asciicast.MAX_SIDE


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "no JSON"),
        (b"[1]", "no asciicast header"),
        (b'{"version": 1, "width": 80, "height": 24}', "version 1: only version 2"),
        (b'{"version": 3, "term": {}}', "version 3: only version 2"),
        (b'{"version": 2, "width": 0, "height": 24}', "width and height"),
        (b'{"version": 2, "width": true, "height": 24}', "width and height"),
        (b'{"version": 2, "width": 80, "height": 70000}', "width and height"),
        (b"[" * 100_000, "no JSON"),
        (b'"' + b"a" * asciicast.MAX_LINE + b'"', "limit 1048576"),
    ],
    ids=range(9),
)
def test_what_is_no_header_is_refused_in_one_line(line, said):
    with pytest.raises(CastError, match=said) as error:
        decode_header(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [b'[1, "o"]', b'[-1, "o", ""]', b'[NaN, "o", ""]', b'[1e300, "o", ""]', b'[true, "o", ""]', b'[1, "x", ""]', b"{}"],
    ids=bytes.decode,
)
def test_what_is_no_event_is_refused(line):
    with pytest.raises(CastError):
        decode_event(line)


@pytest.mark.parametrize(("data", "size"), [("80x24", (80, 24)), ("80x", None), ("ax1", None), ("1x999999", None)])
def test_the_size_of_a_resize(data, size):
    assert Event(0, "r", data).size == size
    assert Event(0, "o", data).size is None
