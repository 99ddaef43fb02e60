"""The web of the one port: pages and API for browsers and tsh, and the few calls of the bootstrap name.

Belongs here: which path leads where, and the handler of web and bootstrap connections. Does not belong here: what the
endpoints do (api.py), HTML (pages.py), framing and deadlines (net/http.py).
"""

import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient
from monoport.net.http import Limits, serve_http
from monoport.net.stream import linger
from monoport.proxy.connection import Connection
from monoport.proxy.web import pages
from monoport.proxy.web.api import Api, Refused, error
from monoport.proxy.web.headers import Shell, security_headers
from monoport.proxy.web.rate import Rate
from monoport.proxy.web.site import Site
from monoport.proxy.web.style import STYLE_HASH
from monoport.routing.names import BOOTSTRAP
from monoport.routing.outcome import Kind

LOGIN_BURST, LOGIN_SECONDS = 60, 1.0  # a class behind one address can sign in at once; a guesser gets one try a second
JOIN_BURST, JOIN_SECONDS = 120, 0.5  # a rack of hosts boots behind one address; tokens have 128 bits or more
# To clients that offer h2 alone: empty SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED (RFC 9113 sections 6.5 and 6.8).
H2_DECLINED = bytes.fromhex("000000040000000000000008070000000000000000000000000d")
LIMITS = Limits(body_bytes=65_536)  # the largest request is a join with two public keys and 64 names: under 32 KiB


class Web:
    """Serves connections of Kind.WEB and Kind.BOOTSTRAP.

    Args:
        site: what the proxy says of itself.
        auth: the cluster's auth service, called with the proxy's own identity.
        cas: gives the cluster's CAs as they are now.
        clock: monotonic seconds, for the limits on tries.
    """

    def __init__(
        self, site: Site, auth: AuthClient, cas: Callable[[], TrustedCas], clock: Callable[[], float] = time.monotonic
    ) -> None:
        logins, joins = Rate(LOGIN_BURST, LOGIN_SECONDS, clock), Rate(JOIN_BURST, JOIN_SECONDS, clock)
        api = Api(site, auth, cas, logins, joins)
        headers = security_headers(STYLE_HASH, hsts=site.certificate)
        self.web: ASGIApp = Shell(_application(site, api, whole=True), site.hosts, headers)
        headers = security_headers(STYLE_HASH, hsts=False)
        self.bootstrap: ASGIApp = Shell(_application(site, api, whole=False), frozenset({BOOTSTRAP}), headers)

    async def serve(self, connection: Connection) -> None:
        """Answer the requests of one connection until it ends."""
        route = connection.route
        assert route is not None
        state = {"id": connection.id, "source": connection.source[0], "server_name": route.server_name}
        if route.tls is not None and route.tls.alpn == "h2":
            connection.stream.send(H2_DECLINED)
            linger(connection.stream)  # the client's own preface is under way: a reset would destroy the answer
            await connection.stream.wait_closed()
            return
        app = self.bootstrap if route.kind is Kind.BOOTSTRAP else self.web
        stream, source = connection.stream, connection.source
        await serve_http(stream, app, state=state, limits=LIMITS, client=source, connection=connection.id)


def _application(site: Site, api: Api, *, whole: bool) -> Starlette:
    routes = [
        Route("/webapi/ping", api.ping, methods=["GET"]),
        Route("/webapi/cas", api.cas, methods=["GET"]),
        Route("/webapi/login", api.login, methods=["POST"]),
        Route("/webapi/join", api.join, methods=["POST"]),
    ]
    if whole:

        async def home(_request: Request) -> Response:
            return HTMLResponse(pages.home(site))

        routes += [Route("/", home, methods=["GET"]), Route("/webapi/find", api.ping, methods=["GET"])]

    async def refused(_request: Request, failed: Exception) -> Response:
        assert isinstance(failed, Refused)
        return error(failed)

    async def http_error(request: Request, failed: Exception) -> Response:
        assert isinstance(failed, HTTPException)
        return _http_error(site, request, failed, pages_too=whole)

    handlers = {Refused: refused, HTTPException: http_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    return app


def _http_error(site: Site, request: Request, failed: HTTPException, *, pages_too: bool) -> Response:
    path: str = request.scope["path"]
    if failed.status_code == 405:
        response = error(Refused(405, "method_not_allowed", f"{path} does not take {request.method}"))
        response.headers.update(failed.headers or {})
        return response
    if failed.status_code != 404:
        return error(Refused(failed.status_code, "bad_request", str(failed.detail)))
    wants_page = pages_too and not path.startswith("/webapi/") and "text/html" in request.headers.get("accept", "")
    if wants_page:
        return HTMLResponse(pages.not_found(site, path), 404)
    shown = "".join(c if c.isprintable() else "?" for c in path)[:80]
    return error(Refused(404, "not_found", f"there is nothing at {shown}; see / for what this is"))
