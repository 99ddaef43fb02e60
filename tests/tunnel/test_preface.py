"""The preface and its answer as values: nothing unknown, nothing oversized, nothing of the wrong type."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.tunnel.preface import (
    MAX_FEATURES,
    MAX_FIELD,
    Accepted,
    Kind,
    Preface,
    Refused,
    answer_object,
    preface_object,
    read_answer,
    read_preface,
)
from monoport.wire import frame
from monoport.wire.frame import FrameError

short = st.text(max_size=40)
names = st.text(min_size=1, max_size=40)
prefaces = st.builds(
    Preface,
    connection=names,
    kind=st.sampled_from(Kind),
    target=names,
    certificate=short,
    source=short,
    host_id=names,
    user=short,
    database=short,
    process_id=st.integers(-(2**31), 2**32 - 1),
    secret=st.binary(max_size=256),
    features=st.lists(names, max_size=16).map(tuple),
)
GOOD = Preface("c", Kind.DATABASE, "pg", host_id="h", process_id=7, secret=b"\0\1")


@given(prefaces)
def test_prefaces_travel_unchanged(preface):
    obj, _ = frame.decode(frame.encode(preface_object(preface)))
    assert read_preface(obj) == preface


@given(
    st.dictionaries(st.sampled_from([*preface_object(GOOD), "x"]), st.none() | st.text() | st.integers() | st.floats())
)
def test_anything_else_is_refused_or_whole(change):
    obj = preface_object(GOOD) | change
    try:
        found = read_preface(obj)
    except FrameError:
        return
    assert read_preface(preface_object(found)) == found


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"extra": 1},
        {"kind": "shell"},
        {"kind": 1},
        {"connection": ""},
        {"target": ""},
        {"host_id": ""},
        {"target": "x" * (MAX_FIELD + 1)},
        {"user": ["root"]},
        {"secret": "xyz"},
        {"process_id": True},
        {"process_id": 2**32},
        {"process_id": "7"},
        {"features": "replication"},
        {"features": [""]},
        {"features": [1]},
        {"features": ["x"] * (MAX_FEATURES + 1)},
    ],
)
def test_fields_are_strict(change):
    with pytest.raises(FrameError):
        read_preface(preface_object(GOOD) | change)


@pytest.mark.parametrize("missing", ["version", "connection", "kind", "target", "host_id"])
def test_some_fields_are_needed(missing):
    obj = preface_object(GOOD)
    del obj[missing]
    with pytest.raises(FrameError):
        read_preface(obj)


def test_answers():
    assert read_answer(answer_object(Accepted())) == Accepted()
    assert read_answer(answer_object(Refused("denied", "no"))) == Refused("denied", "no")
    long = read_answer(answer_object(Refused("denied", "x" * 9000)))
    assert long == Refused("denied", "x" * MAX_FIELD)
    for garbage in ({}, {"ok": 1}, {"ok": None}, {"ok": "yes"}, {"ok": False, "code": 5}):
        with pytest.raises(FrameError):
            read_answer(garbage)


def test_the_secret_is_not_text():
    assert preface_object(replace(GOOD, secret=b"\xff"))["secret"] == "ff"
