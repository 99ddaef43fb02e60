"""The web API: ping, find, the CAs, the first login and joining, as JSON.

Belongs here: strict requests in, JSON out, errors with a code. Does not belong here: deciding who may (auth), pages.
"""

import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient, AuthError
from monoport.auth.messages import MAX_TTL, Names, PublicKey, TokenType
from monoport.proxy.web.rate import Rate
from monoport.proxy.web.site import Site

Endpoint = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=BaseModel)

_log = structlog.get_logger()
_STATUS = {  # the service's codes that mean something to an HTTP client; every other refusal is 403
    "bad_request": 400,
    "invalid": 400,
    "wrong_password": 401,
    "login_locked": 429,
    "exists": 409,
    "not_found": 404,
    "unavailable": 503,
    "busy": 503,
    "storage": 503,
    "audit_unavailable": 503,
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Login(_Strict):
    """POST /webapi/login: a user's name and password, and the public keys to be certified; ttl in seconds."""

    user: Annotated[str, Field(min_length=1, max_length=255)]
    password: Annotated[str, Field(max_length=4096, repr=False)]
    public_key: PublicKey
    ssh_public_key: PublicKey
    ttl: Annotated[int, Field(ge=1, le=MAX_TTL)] | None = None


class Join(_Strict):
    """POST /webapi/join: a token, what the host wants to be, and the public keys to be certified."""

    token: Annotated[str, Field(min_length=1, max_length=1024, repr=False)]
    name: Annotated[str, Field(min_length=1, max_length=255)]
    roles: Annotated[tuple[TokenType, ...], Field(min_length=1, max_length=8)]
    public_key: PublicKey
    ssh_public_key: PublicKey
    names: Names = ()


class Refused(Exception):
    """An answer other than 200: status, a fixed code and one line for people."""

    def __init__(self, status: int, code: str, message: str, retry: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry


class Joining:
    """The endpoints by which a host becomes one of the cluster.

    auth: the cluster's auth service. cas: gives the cluster's CAs as they are now. joins: how often one source address
    may try.
    """

    def __init__(self, auth: AuthClient, cas: Callable[[], TrustedCas], joins: Rate) -> None:
        self._auth, self._cas, self._joins = auth, cas, joins

    async def cas(self, _request: Request) -> Response:
        """GET /webapi/cas: public certificates and keys."""
        return JSONResponse(self._cas().to_json())

    async def join(self, request: Request) -> Response:
        """POST /webapi/join."""
        source = _admitted(self._joins, request)
        join = await _body(request, Join)
        certificates = await _asked(
            request,
            self._auth.join(
                join.token,
                name=join.name,
                roles=join.roles,
                public_key=join.public_key,
                ssh_public_key=join.ssh_public_key,
                names=join.names,
                source=source,
                connection=request.scope["state"]["id"],
            ),
        )
        return JSONResponse(_dump(certificates))


class Api(Joining):
    """The endpoints of one proxy.

    site: what it says of itself. logins: how often one source address may try. auth, cas, joins: as for Joining.
    """

    def __init__(self, site: Site, auth: AuthClient, cas: Callable[[], TrustedCas], logins: Rate, joins: Rate) -> None:
        super().__init__(auth, cas, joins)
        self._site, self._logins = site, logins

    async def ping(self, _request: Request) -> Response:
        """GET /webapi/ping and /webapi/find."""
        return JSONResponse(self._site.describe())

    async def login(self, request: Request) -> Response:
        """POST /webapi/login."""
        source = _admitted(self._logins, request)
        login = await _body(request, Login)
        certificates = await _asked(
            request,
            self._auth.authenticate(
                login.user,
                login.password,
                public_key=login.public_key,
                ssh_public_key=login.ssh_public_key,
                ttl=None if login.ttl is None else timedelta(seconds=login.ttl),
                source=source,
                connection=request.scope["state"]["id"],
            ),
        )
        return JSONResponse(_dump(certificates))


def error(refused: Refused) -> Response:
    """The one form of errors: `{"error": {"code", "message"}}`."""
    headers = {"Retry-After": str(math.ceil(refused.retry))} if refused.retry else {}
    body = {"error": {"code": refused.code, "message": str(refused)}}
    return JSONResponse(body, refused.status, headers=headers)


def _admitted(rate: Rate, request: Request) -> str:
    source: str = request.scope["state"]["source"]
    wait = rate.take(source)
    if wait:
        connection = request.scope["state"]["id"]
        _log.warning("too many tries", path=request.scope["path"], source=source, connection=connection)
        message = f"too many tries from this address; try again in {math.ceil(wait)} s"
        raise Refused(429, "too_many_tries", message, retry=wait)
    return source


async def _body(request: Request, model: type[Body]) -> Body:
    """Read a strict JSON body; a browser cannot send this content type from another site without asking first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "bad_request", "expected Content-Type: application/json")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as failed:
        first = failed.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        where = "".join(c if c.isprintable() else "?" for c in where)[:80]
        raise Refused(400, "bad_request", f"{where or 'body'}: {first['msg']}") from None


async def _asked(request: Request, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except AuthError as failed:
        message = str(failed)
        if failed.code == "unavailable":
            _log.error("auth service unavailable", error=message, connection=request.scope["state"]["id"])
            message = "the cluster's auth service cannot be reached; try again soon"
        raise Refused(_STATUS.get(failed.code, 403), failed.code, message) from None


def _dump(answer: BaseModel) -> dict[str, Any]:
    return answer.model_dump(mode="json")
