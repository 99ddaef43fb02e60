"""Metrics and health over HTTP on `teleport.diag_addr`, for monitoring and for whoever restarts or balances daemons.

Belongs here: three answers, what asking for them may cost, and the warning where strangers can ask. Does not belong
here: the numbers (measure), the text (audit.metrics), what makes a service ready (start). There is no authentication:
nothing that is answered names a user, a host or a database, and nothing can be changed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from monoport import __version__
from monoport.audit.metrics import CONTENT_TYPE, Metrics
from monoport.net.arrival import Arrival, Limits, Source
from monoport.net.http import Limits as HttpLimits
from monoport.net.http import serve_http
from monoport.net.listener import Listener

# A handful of scrapers and probes, each with a connection or two; more wait, and one address cannot take all.
CONNECTIONS = Limits(connections=64, per_source=32)
REQUESTS = HttpLimits(header_seconds=5.0, header_bytes=8192, body_seconds=1.0, body_bytes=0, write_seconds=10.0)

Readiness = Callable[[], Awaitable[Mapping[str, str]]]

_log = structlog.get_logger()


def application(metrics: Metrics, readiness: Readiness, degraded: Callable[[], Mapping[str, str]] = dict) -> Starlette:
    """The ASGI application.

    degraded: gives services that are ready and do less than they should, with what that is.

    readiness: gives, for every service that is enabled, what it still waits for, "" where it is ready.
    """

    async def measured(_request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    async def alive(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__}, headers={"Cache-Control": "no-store"})

    async def ready(_request: Request) -> Response:
        services = await readiness()
        all_ready = not any(services.values())
        body: dict[str, object] = {"ready": all_ready}
        body |= {"services": {name: missing or "ready" for name, missing in services.items()}}
        if less := degraded():
            body["degraded"] = dict(less)
        return JSONResponse(body, 200 if all_ready else 503, headers={"Cache-Control": "no-store"})

    async def wrong(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = "expected GET or HEAD of /metrics, /healthz or /readyz\n"
        return PlainTextResponse(text, error.status_code, headers=error.headers)

    paths = [Route(path, serve) for path, serve in (("/metrics", measured), ("/healthz", alive), ("/readyz", ready))]
    app = Starlette(routes=paths, exception_handlers={HTTPException: wrong})
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    return app


async def serve(sockets: Iterable[socket.socket], app: Starlette) -> None:
    """Answer on bound sockets until cancelled."""

    async def answer(arrival: Arrival) -> None:
        arrival.routed()  # HTTP has deadlines of its own
        arrival.settled()
        arrival.stream.unread(arrival.first)
        stream, source = arrival.stream, arrival.source
        await serve_http(stream, app, state={}, limits=REQUESTS, client=source, connection=arrival.id)

    listener = Listener(sockets, answer, CONNECTIONS, _turned_away)
    for host, port in listener.addresses:
        _log.info("diagnostics", address=host, port=port)
        if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            _log.warning("diagnostics without authentication are open to the network of diag_addr", address=host)
    await listener.run()


def _turned_away(connection: str, source: Source, code: str, reason: str) -> None:
    """Probes that only connect are no news of the front door: they are not counted among its refusals."""
    _log.debug("diagnostics refused", connection=connection, source=source[0], code=code, reason=reason)
