"""What every answer of the web carries, and the check of Host that comes before everything else.

Belongs here: the ASGI shell around the application. Does not belong here: endpoints and pages.
"""

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monoport.proxy.web.api import Refused, error
from monoport.proxy.web.site import is_ours

HSTS = "max-age=31536000"  # a year, as preload lists ask for; only where a certificate of the owner's choice is shown


def security_headers(style_hash: str, *, hsts: bool) -> dict[str, str]:
    """The headers of every answer.

    Args:
        style_hash: CSP source of the one style sheet that pages have inside them; nothing else may load or run.
        hsts: whether browsers shall insist on a valid certificate from now on.
    Source: CSP level 3; RFC 6797; OWASP secure headers.
    """
    policy = f"default-src 'none'; style-src '{style_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return headers | ({"Strict-Transport-Security": HSTS} if hsts else {})


class Shell:
    """An application that answers only requests addressed to us, with our headers on every answer."""

    def __init__(self, app: ASGIApp, ours: frozenset[str], headers: Mapping[str, str]) -> None:
        self._app, self._ours, self._headers = app, ours, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        server_name = scope["state"]["server_name"]
        if len(hosts) == 1 and is_ours(hosts[0].decode("latin-1"), self._ours, server_name):
            await self._app(scope, receive, with_headers)
            return
        refused = Refused(
            421, "misdirected", "this connection does not serve that host; connect anew with its own name"
        )
        await error(refused)(scope, receive, with_headers)
