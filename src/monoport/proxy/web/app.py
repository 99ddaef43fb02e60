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
from monoport.proxy.web.api import Api, Joining, Refused, error
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


def joining(auth: AuthClient, cas: Callable[[], TrustedCas], clock: Callable[[], float] = time.monotonic) -> ASGIApp:
    """What the bootstrap name serves on the auth service's own port: the CAs and joining, and no logins.

    Args: auth: called with the auth service's own identity. cas, clock: as for Web.
    """
    api = Joining(auth, cas, Rate(JOIN_BURST, JOIN_SECONDS, clock))
    headers = security_headers(STYLE_HASH, hsts=False)
    return Shell(_answering(_to_join(api)), frozenset({BOOTSTRAP}), headers)


def _to_join(api: Joining) -> list[Route]:
    return [Route("/webapi/cas", api.cas, methods=["GET"]), Route("/webapi/join", api.join, methods=["POST"])]


def _application(site: Site, api: Api, *, whole: bool) -> Starlette:
    routes = [
        Route("/webapi/ping", api.ping, methods=["GET"]),
        Route("/webapi/login", api.login, methods=["POST"]),
        *_to_join(api),
    ]
    if not whole:
        return _answering(routes)

    async def home(_request: Request) -> Response:
        return HTMLResponse(pages.home(site))

    routes += [Route("/", home, methods=["GET"]), Route("/webapi/find", api.ping, methods=["GET"])]
    return _answering(routes, lambda path: pages.not_found(site, path))


def _answering(routes: list[Route], missing: Callable[[str], str] | None = None) -> Starlette:
    """These routes, and an answer of the API's form to what is wrong; `missing`: the page for a path that is not."""

    async def refused(_request: Request, failed: Exception) -> Response:
        assert isinstance(failed, Refused)
        return error(failed)

    async def http_error(request: Request, failed: Exception) -> Response:
        assert isinstance(failed, HTTPException)
        return _http_error(request, failed, missing)

    app = Starlette(routes=routes, exception_handlers={Refused: refused, HTTPException: http_error})
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    return app


def _http_error(request: Request, failed: HTTPException, missing: Callable[[str], str] | None) -> Response:
    path: str = request.scope["path"]
    if failed.status_code == 405:
        response = error(Refused(405, "method_not_allowed", f"{path} does not take {request.method}"))
        response.headers.update(failed.headers or {})
        return response
    if failed.status_code != 404:
        return error(Refused(failed.status_code, "bad_request", str(failed.detail)))
    wants_page = not path.startswith("/webapi/") and "text/html" in request.headers.get("accept", "")
    if wants_page and missing is not None:
        return HTMLResponse(missing(path), 404)
    shown = "".join(c if c.isprintable() else "?" for c in path)[:80]
    hint = "; see / for what this is" if missing is not None else ""
    return error(Refused(404, "not_found", f"there is nothing at {shown}{hint}"))
