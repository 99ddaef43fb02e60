"""Metrics and health over loopback: what is answered, to whom, and what bad requests get."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from monoport.audit.metrics import CONTENT_TYPE, TABLE, Histogram, Metrics, Sample
from monoport.config import Address, Config
from monoport.daemon import diagnostics, measure, start
from monoport.daemon.datadir import open_data_directory
from monoport.net import ports
from monoport.net.sockets import connect

PATIENCE = 20.0  # seconds for what must happen, on a busy machine


class Answer:
    """One answer, read to the end of its connection."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found


async def ask(port: int, path: str, method: str = "GET", more: str = "") -> Answer:
    async with asyncio.timeout(PATIENCE), await connect("127.0.0.1", port, PATIENCE) as stream:
        await stream.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n".encode())
        data = b""
        while piece := await stream.read():
            data += piece
    return Answer(data)


@asynccontextmanager
async def served(waits: Mapping[str, str], *samples: Sample) -> AsyncIterator[int]:
    """The three answers on a free port; `waits` may be changed meanwhile."""

    async def readiness() -> Mapping[str, str]:
        return waits

    sockets = ports.bind("127.0.0.1", 0)
    port: int = sockets[0].getsockname()[1]
    async with asyncio.TaskGroup() as group:
        app = diagnostics.application(Metrics(lambda: samples), readiness)
        serving = group.create_task(diagnostics.serve(sockets, app))
        await asyncio.sleep(0)  # a turn of the loop, in which it begins to listen
        yield port
        serving.cancel()


async def test_what_does_less_than_it_should_is_ready_and_says_so() -> None:
    sockets = ports.bind("127.0.0.1", 0)
    port: int = sockets[0].getsockname()[1]
    less = {"node": "it goes on unrecorded"}

    async def readiness() -> Mapping[str, str]:
        return {"node": ""}

    async with asyncio.TaskGroup() as group:
        app = diagnostics.application(Metrics(tuple), readiness, lambda: less)
        serving = group.create_task(diagnostics.serve(sockets, app))
        await asyncio.sleep(0)
        found = await ask(port, "/readyz")
        assert (found.status, found.json()["degraded"]) == (200, less)
        less.clear()
        assert "degraded" not in (await ask(port, "/readyz")).json()
        serving.cancel()


async def test_ready_follows_the_services() -> None:
    waits = {"auth": "", "node": "it has no tunnel to the proxy"}
    async with served(waits) as port:
        assert (await ask(port, "/healthz")).status == 200
        found = await ask(port, "/readyz")
        assert found.status == 503
        assert found.json() == {
            "ready": False,
            "services": {"auth": "ready", "node": "it has no tunnel to the proxy"},
        }
        waits["node"] = ""
        found = await ask(port, "/readyz")
        assert (found.status, found.json()["ready"]) == (200, True)
        assert found.headers["cache-control"] == "no-store"


async def test_head_has_no_body() -> None:
    async with served({"auth": "starting"}) as port:
        for path, status in (("/metrics", 200), ("/healthz", 200), ("/readyz", 503)):
            found = await ask(port, path, "HEAD")
            assert (found.status, found.body) == (status, b"")
            assert int(found.headers["content-length"]) > 0


async def test_metrics_have_the_type_that_scrapers_expect() -> None:
    async with served({}, Sample("ssh_sessions_open", 4)) as port:
        found = await ask(port, "/metrics")
    assert found.headers["content-type"] == CONTENT_TYPE
    assert b"\nmonoport_ssh_sessions_open 4.0\n" in found.body
    assert b"\nprocess_open_fds " in found.body


@pytest.mark.parametrize(
    ("path", "method", "more", "status"),
    [
        ("/", "GET", "", 404),
        ("/metrics/", "GET", "", 404),
        ("/../metrics", "GET", "", 404),
        ("/metrics", "POST", "Content-Length: 0\r\n", 405),
        ("/readyz", "DELETE", "", 405),
        ("/metrics", "POST", "Content-Length: 5\r\n", 413),
        ("/metrics", "GET", f"X: {'x' * 100_000}\r\n", 431),
        ("http://elsewhere/metrics", "GET", "", 400),
        ("/metrics", "GET", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", 400),
    ],
)
async def test_bad_requests_are_refused_and_the_next_is_served(path: str, method: str, more: str, status: int) -> None:
    async with served({}) as port:
        assert (await ask(port, path, method, more)).status == status
        assert (await ask(port, "/healthz")).status == 200


async def test_what_is_not_http_is_refused() -> None:
    async with served({}) as port:
        async with await connect("127.0.0.1", port, PATIENCE) as stream:
            await stream.write(b"\x16\x03\x01\x00\x05hello\r\n\r\n")
            assert (await stream.read()).startswith(b"HTTP/1.1 400 ")
        assert (await ask(port, "/healthz")).status == 200


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
async def test_a_warning_where_strangers_can_ask(host: str, warned: bool) -> None:
    async def nothing() -> Mapping[str, str]:
        return {}

    with capture_logs() as lines:
        async with asyncio.TaskGroup() as group:
            app = diagnostics.application(Metrics(lambda: ()), nothing)
            sockets = ports.bind(host, 0)
            serving = group.create_task(diagnostics.serve(sockets, app))
            await asyncio.sleep(0)  # a turn of the loop, in which it begins
            serving.cancel()
    assert any(line["log_level"] == "warning" for line in lines) == warned


async def test_lag_is_how_late_the_loop_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that holds the loop up is seen."""
    lag, seen = Histogram(), asyncio.Event()
    observe = Histogram.observe

    def note(self: Histogram, seconds: float) -> None:
        observe(self, seconds)
        seen.set()

    monkeypatch.setattr(Histogram, "observe", note)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        task = group.create_task(measure.watch_lag(lag, 0.01))
        await asyncio.sleep(0)  # a turn of the loop, in which the timer is set
        time.sleep(0.05)  # noqa: ASYNC251 # what must not happen, and is measured here
        await seen.wait()
        task.cancel()
    assert lag.total >= 0.03
    assert sum(lag.counts[: lag.bounds.index(0.025) + 1]) == 0


# a whole daemon


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[start._Daemon, int]]:
    """A daemon from before it is ready until it has stopped, and the port of its diagnostics."""
    data, lock = open_data_directory(config.teleport.data_dir)
    bound = start._bind(config)
    web = Address("127.0.0.1", bound["web"][0].getsockname()[1])  # the node beside the proxy dials it
    proxy = config.proxy_service.model_copy(update={"web_listen_addr": web})
    daemon = start._Daemon(config.model_copy(update={"proxy_service": proxy}), data, bound)
    port: int = bound["diag"][0].getsockname()[1]
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        task = group.create_task(daemon.run())
        for _ in range(3):
            await asyncio.sleep(0)  # turns of the loop, in which the diagnostics begin to listen
        yield daemon, port
        os.kill(os.getpid(), signal.SIGTERM)
        await task
    os.close(lock)


@pytest.fixture
def daemon(configured: Callable[..., Config], process: None) -> Config:
    config = configured("ssh_service: {enabled: yes}")
    teleport = config.teleport.model_copy(update={"diag_addr": Address("127.0.0.1", 0)})
    return config.model_copy(update={"teleport": teleport})


async def test_alive_at_once_and_ready_when_everything_stands(daemon: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auth, proxy and node: each is named until it is there."""
    may = asyncio.Event()
    whole = start._Daemon._start_proxy

    async def later(*arguments: object) -> asyncio.TaskGroup:
        await may.wait()
        return await whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(start._Daemon, "_start_proxy", later)
    async with running(daemon) as (made, port):
        assert (await ask(port, "/healthz")).status == 200
        found = await ask(port, "/readyz")
        assert found.status == 503
        services = found.json()["services"]
        assert isinstance(services, dict)
        assert set(services) == {"auth", "proxy", "node"}
        assert (services["proxy"], services["node"]) == ("starting", "starting")
        may.set()
        await made.ready.wait()
        found = await ask(port, "/readyz")
        assert (found.status, found.json()["ready"]) == (200, True)
        made.services[0].agent.connected.clear()
        assert (await ask(port, "/readyz")).json()["services"] == {
            "auth": "ready",
            "proxy": "ready",
            "node": "it has no tunnel to the proxy",
        }
        made.services[0].agent.connected.set()


async def test_a_daemon_that_stops_is_not_ready(daemon: Config) -> None:
    async with running(daemon) as (made, _port):
        await made.ready.wait()
        made.stopping.set()
        assert set((await made._readiness()).values()) == {"stopping"}


async def test_storage_that_does_not_answer(daemon: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "ANSWER", 0.01)
    async with running(daemon) as (made, port):
        await made.ready.wait()
        assert made.auth is not None

        async def never(_key: str) -> None:
            await asyncio.get_running_loop().create_future()

        with monkeypatch.context() as away:
            away.setattr(made.auth._storage, "get", never)
            found = await ask(port, "/readyz")
        assert found.status == 503
        assert found.json()["services"] == {"auth": "its storage does not answer", "proxy": "ready", "node": "ready"}


async def test_every_metric_that_a_daemon_shows_is_in_the_table_and_names_nobody(daemon: Config) -> None:
    async with running(daemon) as (made, port):
        await made.ready.wait()
        text = (await ask(port, "/metrics")).body.decode()
    values: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("monoport_"):
                known = {name for one in TABLE.values() for name in (one.shown, f"{one.shown}_bucket")}
                known |= {"monoport_event_loop_lag_seconds_sum", "monoport_event_loop_lag_seconds_count"}
                assert sample.name in known
                for label, value in sample.labels.items():
                    values.setdefault(label, set()).add(value)
    kinds = {"ssh", "tunnel", "dialback", "database", "application", "kubernetes", "web", "bootstrap", "auth"}
    assert values["kind"] <= kinds | {"unrouted"}
    assert values["role"] == {"auth", "proxy", "node"}
    assert values["service"] == {"auth", "proxy", "node"}
    assert values["result"] == {"ok", "failed"}
    assert values["direction"] == {"in", "out"}
    assert set(values) <= {
        "kind",
        "role",
        "service",
        "state",
        "result",
        "direction",
        "version",
        "le",
        "protocol",
        "type",
        "code",
    }
