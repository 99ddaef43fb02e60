"""Where a replay is: time, speed, pauses, seeking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.client.playhead import ASLEEP, FASTEST, Due, Playhead

times = st.lists(st.floats(0, 1e6), max_size=30)


def test_events_are_due_at_their_time():
    head = Playhead([0.0, 1.0, 1.0, 3.0])
    assert head.advance(0) == Due(0, 1)
    assert head.wait() == 1.0
    assert head.advance(0.5) == Due(1, 1)
    assert head.wait() == 0.5
    assert head.advance(0.6) == Due(1, 3)
    assert not head.over
    assert head.advance(100) == Due(3, 4)
    assert head.over


def test_speed_and_idle():
    head = Playhead([0.0, 10.0, 110.0], speed=2, idle=5)
    assert head.length == 10.0
    assert head.advance(0) == Due(0, 1)
    assert head.wait() == 2.5
    assert head.advance(2.5) == Due(1, 2)
    head.faster(10)
    assert head.wait() == pytest.approx(0.25)
    for _ in range(40):
        head.faster(2)
    assert head.speed == FASTEST
    for _ in range(40):
        head.faster(0.5)
    assert head.speed == 1 / 16


def test_pause_seek_and_single_events():
    head = Playhead([0.0, 4.0, 8.0, 12.0])
    head.advance(1)
    head.paused = True
    assert head.advance(100) == Due(1, 1)
    assert head.wait() == ASLEEP
    assert head.seek(5) == Due(1, 2)
    assert head.seek(-5) == Due(0, 1, anew=True)
    assert head.step(1) == Due(1, 2)
    assert head.step(1) == Due(2, 3)
    assert head.step(-1) == Due(0, 2, anew=True)
    assert head.position == 4.0
    assert head.step(-9) == Due(0, 1, anew=True)
    assert head.step(9) == Due(1, 4)
    assert head.go(-1) == Due(0, 1, anew=True)
    assert not head.over
    head.paused = False
    assert head.advance(12) == Due(1, 4)
    assert head.over


def test_nothing_to_play_is_over_at_once():
    head = Playhead([])
    assert head.over
    assert head.length == 0.0
    assert head.step(1) == Due(0, 0)
    assert head.seek(5) == Due(0, 0)


actions = st.lists(st.tuples(st.sampled_from(["advance", "seek", "go", "step"]), st.floats(-1e6, 1e6)), max_size=30)


@given(times, actions, st.none() | st.floats(0.1, 100))
def test_what_is_shown_is_always_the_beginning_up_to_the_position(given_times, done, idle):
    head = Playhead(given_times, idle=idle)
    shown = 0
    for action, amount in done:
        due = head.step(int(amount) % 7 - 3) if action == "step" else getattr(head, action)(amount)
        if due.anew:
            shown = 0
        assert due.first == shown
        shown = due.behind
        assert 0 <= shown <= len(given_times)
        assert 0 <= head.position <= head.length
    head.paused = False
    due = head.advance(1e9)
    assert due.behind == len(given_times)
    assert head.over
