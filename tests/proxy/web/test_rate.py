"""Tries per source: bursts, refill, networks, and bounded memory."""

from hypothesis import given, settings
from hypothesis import strategies as st

from monoport.proxy.web import rate
from monoport.proxy.web.rate import Rate


def test_a_burst_then_one_at_a_time() -> None:
    now = [0.0]
    limit = Rate(3, 10.0, lambda: now[0])
    assert [limit.take("192.0.2.1") for _ in range(5)] == [0.0, 0.0, 0.0, 10.0, 10.0]
    now[0] = 9.0
    assert limit.take("192.0.2.1") == 1.0
    now[0] = 10.0
    assert limit.take("192.0.2.1") == 0.0
    assert limit.take("192.0.2.1") == 10.0
    now[0] = 1000.0
    assert [limit.take("192.0.2.1") for _ in range(4)] == [0.0, 0.0, 0.0, 10.0]


def test_one_ipv6_network_is_one_source() -> None:
    limit = Rate(1, 1.0, lambda: 0.0)
    assert limit.take("2001:db8::1") == 0.0
    assert limit.take("2001:db8::ffff:1%eth0") > 0
    assert limit.take("2001:db8:0:1::1") == 0.0
    assert limit.take("::ffff:192.0.2.1") == 0.0
    assert limit.take("192.0.2.1") > 0
    assert limit.take("unix") == 0.0


def test_memory_is_bounded() -> None:
    limit = Rate(1, 1.0, lambda: 0.0)
    for number in range(rate.MAX_SOURCES + 10):
        limit.take(str(number))
    assert len(limit._full_at) == rate.MAX_SOURCES


@settings(deadline=None)
@given(st.lists(st.floats(0, 5), max_size=60))
def test_never_more_than_burst_and_refill(steps: list[float]) -> None:
    now = [0.0]
    limit = Rate(3, 2.0, lambda: now[0])
    allowed = 0
    for step in steps:
        now[0] += step
        allowed += limit.take("192.0.2.1") == 0.0
        assert allowed <= 3 + now[0] / 2.0 + 1e-6
