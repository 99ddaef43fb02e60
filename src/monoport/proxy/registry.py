"""Who is connected, who was turned away, and the counters of both.

Belongs here: `Connections`, and ending connections whose lease is over. Does not belong here: serving them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from monoport.access.lease import Leases
from monoport.net.arrival import Source
from monoport.proxy.source import shown
from monoport.routing.outcome import Kind, Refusal, Route

if TYPE_CHECKING:
    from monoport.access.claims import Identity
    from monoport.access.resources import Lock
    from monoport.proxy.connection import Connection

REFUSALS = 256  # kept for `tctl conns ls`: a screenful of history, some 100 KiB at most
TICK = 1.0  # seconds between sweeps: a session must be over 5 s after its certificate or lock says so
# Under load lines are written together: in the midst of a connection's end each costs four times as much, since the
# logger's code and data have left the processor's caches. Idle, they are written at once.
BATCH = 64  # lines
DELAY = 0.05  # seconds
SHOWN = 256  # characters of a name that a stranger chose


# id, source, route, identity, the client's software, seconds, bytes in and out, and why it ended
_Over = tuple[str, Source, Route, "Identity | None", str, float, int, int, str | None]


@dataclass(frozen=True, slots=True)
class Turned:
    """One refusal: when (seconds since 1970), whom, and why."""

    connection: str
    time: float
    source: Source
    refusal: Refusal
    route: Route | None
    user: str | None


class Connections:
    """The live connections of this process and the last refusals."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.closed_by_kind: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.refused_by_code: Counter[str] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self._log: Any = structlog.get_logger().bind()
        self._over: list[_Over] = []  # ended, their lines not written yet
        self._timer: asyncio.TimerHandle | None = None
        self._live: dict[str, Connection] = {}
        self._refusals: deque[Turned] = deque(maxlen=REFUSALS)

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

    def get(self, connection: str) -> Connection | None:
        """The live connection of that id."""
        return self._live.get(connection)

    @property
    def refusals(self) -> tuple[Turned, ...]:
        """The last refusals, oldest first."""
        return tuple(self._refusals)

    def opened(self, connection: Connection) -> None:
        """A connection has spoken its first bytes."""
        self._live[connection.id] = connection

    def closed(self, connection: Connection) -> None:
        """A connection is over: count it and log its one line, at once or with those that end within DELAY."""
        if self._live.pop(connection.id, None) is None:
            return
        route, meter = connection.route, connection.meter
        if route is None:
            return
        self.closed_by_kind[route.kind] += 1
        self.bytes_in += meter.bytes_in
        self.bytes_out += meter.bytes_out
        seconds = round(time.time() - connection.started, 3)
        ended = connection.ended or meter.ended or None
        self._over.append(
            (
                connection.id,
                connection.source,
                route,
                connection.identity,
                connection.client,
                seconds,
                meter.bytes_in,
                meter.bytes_out,
                ended,
            )
        )
        if not self._live or len(self._over) >= BATCH:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self.flush)

    def flush(self) -> None:
        """Write the lines of the connections that have ended since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        over, self._over = self._over, []
        for name, source, route, identity, client, seconds, bytes_in, bytes_out, ended in over:
            self._log.info(
                "connection",
                connection=name,
                source=shown(source),
                kind=route.kind.value,
                rule=route.rule,
                sni=_shown(route.server_name),
                alpn=",".join(_shown(protocol) or "" for protocol in route.alpn) or None,
                client=_shown(client or None),
                user=str(identity) if identity is not None else None,
                seconds=seconds,
                bytes_in=bytes_in,
                bytes_out=bytes_out,
                ended=ended,
            )

    def refused(
        self,
        connection: str,
        source: Source,
        refusal: Refusal,
        route: Route | None = None,
        identity: Identity | None = None,
    ) -> None:
        """A connection was turned away: count, keep and log it, with its route and user where they were known."""
        self.refused_by_code[str(refusal.code)] += 1
        user = str(identity) if identity is not None else None
        self._refusals.append(Turned(connection, time.time(), source, refusal, route, user))
        self._log.info(
            "refused",
            connection=connection,
            source=shown(source),
            code=str(refusal.code),
            rule=refusal.rule or (route.rule if route is not None else None),
            user=user,
            reason=refusal.reason,
        )

    def turned_away(self, connection: str, source: Source, code: str, reason: str) -> None:
        """As `refused`, in the listener's own form."""
        self.refused(connection, source, Refusal(code, reason))

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary per live connection, oldest first, then one per refusal, for `tctl conns ls`."""
        return [_live_row(connection) for connection in self._live.values()] + [
            _refusal_row(turned) for turned in self._refusals
        ]

    def sweep(self, now: datetime, locks: Iterable[Lock]) -> int:
        """End every connection whose certificate has expired or whose user is locked; returns how many."""
        return self.leases.sweep(now, locks)

    async def watch(
        self,
        locks: Callable[[], Iterable[Lock]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        tick: float = TICK,
    ) -> None:
        """Sweep every `tick` seconds until cancelled; `locks` answers with those in force now."""
        while True:
            await asyncio.sleep(tick)
            try:
                self.sweep(clock(), locks())
            except ExceptionGroup:
                self._log.exception("some connections could not be ended")


def _live_row(connection: Connection) -> dict[str, Any]:
    route = connection.route
    return {
        "id": connection.id,
        "state": connection.state,
        "source": shown(connection.source),
        "started": _iso(connection.started),
        "kind": route.kind.value if route else None,
        "rule": route.rule if route else None,
        "protocol": route.protocol if route else None,
        "target": route.target if route else None,
        "sealed": route.sealed if route else False,
        "server_name": _shown(route.server_name) if route else None,
        "alpn": [_shown(name) for name in route.alpn] if route else [],
        "client": _shown(connection.client or None),
        "user": str(connection.identity) if connection.identity else None,
        "bytes_in": connection.meter.bytes_in,
        "bytes_out": connection.meter.bytes_out,
        "code": None,
        "reason": None,
    }


def _refusal_row(turned: Turned) -> dict[str, Any]:
    route = turned.route
    return {
        "id": turned.connection,
        "state": "refused",
        "source": shown(turned.source),
        "started": _iso(turned.time),
        "kind": route.kind.value if route else None,
        "rule": turned.refusal.rule or None,
        "protocol": route.protocol if route else None,
        "target": route.target if route else None,
        "sealed": route.sealed if route else False,
        "server_name": _shown(route.server_name) if route else None,
        "alpn": [_shown(name) for name in route.alpn] if route else [],
        "client": None,
        "user": turned.user,
        "bytes_in": 0,
        "bytes_out": 0,
        "code": str(turned.refusal.code),
        "reason": turned.refusal.reason,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _shown(name: str | None) -> str | None:
    """A name of a stranger's choice, cut and without control characters."""
    if name is None or (len(name) <= SHOWN and name.isascii() and name.isprintable() and "\\" not in name):
        return name
    return name[:SHOWN].encode("unicode_escape").decode("ascii")
