"""The metrics of a daemon: which there are, and their text for Prometheus.

Belongs here: the table of metrics, what bounds their labels, the collector that asks for numbers when it is scraped.
Does not: where the numbers come from (daemon/measure.py), HTTP (daemon/diagnostics.py). The page docs/operations.md is
made from the table: `python -m monoport.audit.metrics`.
"""

from __future__ import annotations

import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4  # the form that every version of Prometheus, and every agent, reads
SETS: Final = 64  # label sets of one metric: codes and types of events are a few dozen; what is beyond is one more
OTHER: Final = "other"  # the value of every label that is beyond the bound or not a word of ours
FRESH: Final = 0.25  # seconds for which a text is given out again: whoever asks without a pause costs no more
LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds

# Kinds, protocols, roles, codes, types of events: words of our own source. Names that people or strangers choose are
# not told from these by their form alone; that no source gives them is what tests hold.
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9_.+-]{0,47}", re.ASCII)


class Form(StrEnum):
    """What Prometheus may do with a metric: a counter only grows, a gauge goes up and down."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Description:
    """One metric: its name without `monoport_` (and, of a counter, `_total`), its labels, and what it says."""

    name: str
    form: Form
    help: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The name as Prometheus sees it."""
        return f"monoport_{self.name}" + ("_total" if self.form is Form.COUNTER else "")


_COUNTER, _GAUGE = Form.COUNTER, Form.GAUGE
TABLE: Final[Mapping[str, Description]] = {
    one.name: one
    for one in (
        Description("info", _GAUGE, "always 1; the version is a label", ("version",)),
        Description("service_ready", _GAUGE, "1 where /readyz calls the service ready, else 0", ("service",)),
        Description("connections_open", _GAUGE, "connections at the front door now", ("kind", "protocol")),
        Description("connections_routed", _COUNTER, "connections that got a route, even if refused later", ("kind",)),
        Description("connections_refused", _COUNTER, "connections turned away, by the code of the refusal", ("code",)),
        Description("connection_slots_used", _GAUGE, "connections that hold one of the slots of `limits.connections`"),
        Description("connection_slots", _GAUGE, "slots in all; with none left, newcomers wait"),
        Description("relayed_bytes", _COUNTER, "bytes relayed; in: from clients, out: to them", ("direction",)),
        Description("tunnels_open", _GAUGE, "reverse tunnels that agents hold open to this proxy", ("role",)),
        Description("tunnel_streams_open", _GAUGE, "streams dialled through those tunnels", ("role",)),
        Description("logins", _COUNTER, "first logins with a password at this auth service: ok, failed", ("result",)),
        Description("auth_connected", _GAUGE, "1 while the role's watch of the auth service stands, else 0", ("role",)),
        Description(
            "certificate_expiry_timestamp_seconds",
            _GAUGE,
            "when this host's certificate ends (seconds since 1970); it is renewed at half of its life",
            ("role",),
        ),
        Description("audit_events", _COUNTER, "events that are durable in the role's spool", ("role", "type")),
        Description("audit_events_failed", _COUNTER, "events that the spool could not keep", ("role",)),
        Description("audit_events_lost", _COUNTER, "events lost for good: neither disk nor memory had room", ("role",)),
        Description("audit_failing", _GAUGE, "1 while the role's events cannot be kept on disk, else 0", ("role",)),
        Description("audit_waiting_events", _GAUGE, "events that the auth service does not have yet", ("role",)),
        Description("audit_waiting_bytes", _GAUGE, "bytes of those in the spool", ("role",)),
        Description("agent_connected", _GAUGE, "1 while the agent's tunnel to the proxy stands, else 0", ("role",)),
        Description("ssh_connections_open", _GAUGE, "logins at this SSH node now"),
        Description("ssh_sessions_open", _GAUGE, "shells, commands and file transfers at this SSH node now"),
        Description("ssh_logins", _COUNTER, "logins at this SSH node"),
        Description(
            "recordings",
            _GAUGE,
            "recordings at this SSH node: waiting for the auth service, or refused by it and put aside",
            ("state",),
        ),
        Description("database_sessions_open", _GAUGE, "sessions through this database agent now", ("protocol",)),
        Description("database_sessions", _COUNTER, "sessions through this database agent", ("protocol",)),
        Description("database_statements", _COUNTER, "statements recorded and passed on", ("protocol",)),
        Description("databases", _GAUGE, "registered databases, by whether their servers answer: up, down", ("state",)),
        Description(
            "event_loop_lag_seconds",
            Form.HISTOGRAM,
            "how late the event loop came to a timer, looked at twice a second; all of a process's traffic shares it",
        ),
    )
}  # fmt: skip


@dataclass(slots=True)
class Histogram:
    """Seconds, counted by how many there were in each span."""

    bounds: tuple[float, ...] = LAGS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Return, for each bound and for "+Inf", how many were not above it."""
        found, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of one metric; `labels` are the values in the order of its description."""

    name: str
    value: float | Histogram
    labels: tuple[str, ...] = ()


Read = Callable[[], Iterable[Sample]]


@final
class Metrics:
    """Every metric of one process, as text.

    Args:
        read: gives the samples of this moment; the same metric and labels twice are added up.
        clock: monotonic seconds.
    """

    def __init__(self, read: Read, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Samples(read))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._text = b""
        self._made = float("-inf")

    def text(self) -> bytes:
        """Return the exposition text (Prometheus, "Exposition formats", text-based, version 0.0.4)."""
        now = self._clock()
        if now - self._made >= FRESH:
            self._text, self._made = generate_latest(self._registry), now
        return self._text


class _Samples(Collector):
    """Asks for the samples when it is scraped: nothing is counted twice on the way of bytes."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        found: dict[str, dict[tuple[str, ...], float | Histogram]] = {}
        for sample in self._read():
            description = TABLE[sample.name]
            if len(sample.labels) != len(description.labels):
                raise ValueError(f"{sample.name} has the labels {description.labels}, not {sample.labels}")
            _add(found.setdefault(sample.name, {}), sample)
        for name, values in found.items():
            yield _family(TABLE[name], values)


def _add(values: dict[tuple[str, ...], float | Histogram], sample: Sample) -> None:
    labels = tuple(value if _WORD.fullmatch(value) else OTHER for value in sample.labels)
    if labels not in values and len(values) >= SETS:
        labels = (OTHER,) * len(labels)
    before = values.get(labels, 0.0)
    if isinstance(sample.value, Histogram) or isinstance(before, Histogram):
        values[labels] = sample.value
    else:
        values[labels] = before + sample.value


def _family(described: Description, values: Mapping[tuple[str, ...], float | Histogram]) -> Metric:
    name = f"monoport_{described.name}"
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    match described.form:
        case Form.COUNTER:
            family = CounterMetricFamily(name, described.help, labels=described.labels)
        case Form.GAUGE:
            family = GaugeMetricFamily(name, described.help, labels=described.labels)
        case Form.HISTOGRAM:
            family = HistogramMetricFamily(name, described.help, labels=described.labels)
    for labels, value in values.items():
        if isinstance(family, HistogramMetricFamily):
            assert isinstance(value, Histogram), f"{name} is a histogram"
            family.add_metric(labels, value.cumulative(), value.total)
        else:
            assert not isinstance(value, Histogram), f"{name} is no histogram"
            family.add_metric(labels, value)
    return family


def table() -> str:
    """Return the table of metrics as Markdown."""
    lines = ["| metric | form | labels | meaning |", "|---|---|---|---|"]
    for one in TABLE.values():
        labels = ", ".join(f"`{label}`" for label in one.labels)
        lines.append(f"| `{one.shown}` | {one.form} | {labels} | {one.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
