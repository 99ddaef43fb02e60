"""Cancel keys: found by the whole key alone, forgotten with their session, not to be guessed."""

from typing import cast

from monoport.access.decide import Permit
from monoport.proxy.cancels import EVENTS, GUESSES, SOURCES, Cancels

PERMIT = cast(Permit, object())  # never looked at here


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def make(clock: Clock, numbers: list[int]) -> Cancels:
    return Cancels(clock, lambda bits: numbers.pop(0), lambda n: bytes(range(1, n + 1)))


def test_a_key_is_found_while_its_session_lives() -> None:
    cancels = make(Clock(), [0, 7, 7, 9])
    with cancels.open("a") as first, cancels.open("b") as second:
        cancels.arm(first, 4)
        cancels.arm(second, 32)
        assert (first.key.process_id, second.key.process_id) == (7, 9)  # never 0, never one in use
        assert cancels.find(7, b"\1\2\3\4", "10.0.0.1") is None  # not authorised yet
        first.permit = second.permit = PERMIT
        assert cancels.find(7, b"\1\2\3\4", "10.0.0.1") is first
        assert cancels.find(9, bytes(range(1, 33)), "10.0.0.1") is second
        assert cancels.find(9, b"\1\2\3\4", "10.0.0.1") is second  # its server speaks only 3.0
        assert cancels.find(9, bytes(range(1, 32)), "10.0.0.1") is None
        assert cancels.find(7, b"\1\2\3\5", "10.0.0.1") is None
        assert cancels.find(7, b"", "10.0.0.1") is None
    assert cancels.find(7, b"\1\2\3\4", "10.0.0.1") is None


def test_guessing_is_limited_per_source() -> None:
    clock = Clock()
    cancels = make(clock, [7])
    with cancels.open("a") as live:
        cancels.arm(live, 4)
        live.permit = PERMIT
        for _ in range(int(GUESSES)):
            assert cancels.find(8, b"\1\2\3\4", "10.0.0.1") is None
        assert cancels.find(7, b"\1\2\3\4", "10.0.0.1") is None, "the right key, but after too many wrong ones"
        assert cancels.find(7, b"\1\2\3\4", "10.0.0.2") is live
        clock.time += 1
        assert cancels.find(7, b"\1\2\3\4", "10.0.0.1") is live
        for _ in range(1000):
            assert cancels.find(7, b"\1\2\3\4", "10.0.0.2") is live, "right keys cost nothing"


def test_guesses_are_told_of_up_to_a_limit_and_none_is_forgotten() -> None:
    clock = Clock()
    cancels = make(clock, [])
    assert [cancels.to_record() for _ in range(int(EVENTS))] == [1] * int(EVENTS)
    assert [cancels.to_record() for _ in range(1000)] == [0] * 1000
    clock.time += 1
    assert cancels.to_record() == 1001
    assert cancels.to_record() == 0


def test_sources_are_forgotten() -> None:
    cancels = make(Clock(), [7])
    for n in range(SOURCES + 10):
        assert cancels.find(1, b"abcd", str(n)) is None
    assert len(cancels._guesses) == SOURCES


def test_keys_differ_and_do_not_show() -> None:
    cancels = Cancels()
    with cancels.open("a") as a, cancels.open("b") as b:
        cancels.arm(a, 32)
        cancels.arm(b, 32)
        assert a.key.secret != b.key.secret
        assert a.key.process_id != b.key.process_id
        assert "secret" not in repr(a)
