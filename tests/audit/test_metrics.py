"""The text for Prometheus: what is in it, what bounds it, and that asking again at once costs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monoport.audit.metrics import LAGS, OTHER, SETS, TABLE, Form, Histogram, Metrics, Sample, table


def families(*samples: Sample) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    """What a scraper reads of these samples, process metrics left out."""
    text = Metrics(lambda: samples).text().decode()
    return {
        family.name: [(one.name, one.labels, one.value) for one in family.samples]
        for family in text_string_to_metric_families(text)
        if family.name.startswith("monoport_")
    }


def test_a_scraper_reads_what_was_said() -> None:
    found = families(
        Sample("relayed_bytes", 7, ("in",)),
        Sample("relayed_bytes", 8, ("out",)),
        Sample("ssh_sessions_open", 3),
    )
    assert found == {
        "monoport_relayed_bytes": [
            ("monoport_relayed_bytes_total", {"direction": "in"}, 7.0),
            ("monoport_relayed_bytes_total", {"direction": "out"}, 8.0),
        ],
        "monoport_ssh_sessions_open": [("monoport_ssh_sessions_open", {}, 3.0)],
    }


def test_the_same_labels_twice_are_added_up() -> None:
    found = families(Sample("tunnels_open", 1, ("node",)), Sample("tunnels_open", 1, ("node",)))
    assert found["monoport_tunnels_open"] == [("monoport_tunnels_open", {"role": "node"}, 2.0)]


def test_label_sets_are_bounded_whatever_is_said() -> None:
    found = families(*(Sample("connections_refused", 1, (f"code_{number}",)) for number in range(SETS + 1000)))
    samples = found["monoport_connections_refused"]
    assert len(samples) == SETS + 1
    assert samples[-1][1:] == ({"code": OTHER}, 1000.0)


@pytest.mark.parametrize("name", ["", "Ünïcode", 'a"} 1\n', "a b", "x" * 49, "alice@example.com"])
def test_a_label_that_is_no_word_of_ours_is_not_shown(name: str) -> None:
    assert families(Sample("connections_refused", 2, (name,)))["monoport_connections_refused"] == [
        ("monoport_connections_refused_total", {"code": OTHER}, 2.0)
    ]


def test_labels_that_the_table_does_not_know_are_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="has the labels"):
        families(Sample("ssh_logins", 1, ("alice",)))


def test_a_histogram_counts_each_span() -> None:
    lag = Histogram()
    for seconds in (0.0, 0.001, 0.3, 60.0):
        lag.observe(seconds)
    found = families(Sample("event_loop_lag_seconds", lag))["monoport_event_loop_lag_seconds"]
    buckets = {float(labels["le"]): value for name, labels, value in found if name.endswith("_bucket")}
    assert set(buckets) == {*LAGS, math.inf}
    assert (buckets[0.001], buckets[0.25], buckets[0.5], buckets[math.inf]) == (2, 2, 3, 4)
    assert [value for name, _, value in found if name.endswith("_sum")] == [pytest.approx(60.301)]
    assert [value for name, _, value in found if name.endswith("_count")] == [4]


def test_whoever_asks_without_a_pause_gets_the_same_text() -> None:
    asked = 0
    now = 100.0

    def read() -> Iterator[Sample]:
        nonlocal asked
        asked += 1
        yield Sample("ssh_logins", asked)

    metrics = Metrics(read, lambda: now)
    first = metrics.text()
    assert metrics.text() == first
    assert asked == 1
    now += 1
    assert b"monoport_ssh_logins_total 2.0" in metrics.text()


def test_every_metric_has_a_help_and_a_name_by_the_rules_of_prometheus() -> None:
    for one in TABLE.values():
        assert one.help
        assert one.help[0].islower() or one.help[0].isdigit(), one
        assert not one.name.endswith("_total")
        assert "name" not in one.labels
        assert "user" not in one.labels
        assert one.form in Form


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert table() in page, "put the output of python -m monoport.audit.metrics into docs/operations.md"
