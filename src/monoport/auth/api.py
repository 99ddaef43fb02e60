"""The auth service over HTTP: JSON in, JSON out, and one streaming answer for the watch.

Belongs here: paths, statuses, parsing and printing. What an operation does and who may call it is `service` and
`administration`; the connection, and who is calling on it, is `server`. No traceback ever leaves.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from monoport.access.identity import Identity
from monoport.access.resources import Resource, parse_document, to_document
from monoport.audit.events import from_json, to_json
from monoport.audit.outage import NotRecorded
from monoport.audit.segments import SpoolError
from monoport.auth import messages, refusals
from monoport.auth.administration import Administration
from monoport.auth.denials import Denials
from monoport.auth.recorded import RecordingService
from monoport.auth.recordings import Filter
from monoport.auth.resources import Line
from monoport.auth.service import Service
from monoport.auth.storage.interface import StorageError
from monoport.errors import Failure

Body = TypeVar("Body", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]

_log = structlog.get_logger()

SIGN_OF_LIFE = 10.0  # seconds between two signs of life in a watch; clients give up after 30

STATUSES: Mapping[type[refusals.Refusal], int] = {
    refusals.Forbidden: 403,
    refusals.Invalid: 400,
    refusals.NotFound: 404,
    refusals.Exists: 409,
    refusals.Conflict: 409,
    refusals.WrongPassword: 401,
    refusals.LoginLocked: 429,
    refusals.TooBusy: 503,
    refusals.UserLocked: 403,
    refusals.SessionUnknown: 409,
    refusals.TokenUnknown: 403,
    refusals.TokenExpired: 403,
    refusals.TokenType: 403,
}


def build(
    service: Service,
    administration: Administration,
    recordings: RecordingService,
    sign_of_life: float = SIGN_OF_LIFE,
) -> Starlette:
    """The ASGI application; `scope["state"]["identity"]` must hold the verified caller of the connection.

    Args:
        sign_of_life: seconds between two signs of life in a watch.
    """
    calls = _Calls(service, administration, sign_of_life)
    recorded = _Recordings(recordings)
    routes = [
        ("GET", "/v1/status", calls.status),
        ("GET", "/v1/cas", calls.cas),
        ("POST", "/v1/authenticate", calls.authenticate),
        ("POST", "/v1/join", calls.join),
        ("POST", "/v1/reissue", calls.reissue),
        ("POST", "/v1/renew", calls.renew),
        ("POST", "/v1/heartbeat", calls.heartbeat),
        ("GET", "/v1/watch", calls.watch),
        ("POST", "/v1/events", calls.emit),
        ("GET", "/v1/events", calls.events),
        ("GET", "/v1/resources/{kind}", calls.list),
        ("GET", "/v1/resources/{kind}/{name}", calls.get),
        ("POST", "/v1/resources", calls.create),
        ("DELETE", "/v1/resources/{kind}/{name}", calls.delete),
        ("POST", "/v1/databases/{name}/allow", calls.databases_allow),
        ("POST", "/v1/users", calls.users_add),
        ("POST", "/v1/users/{name}/update", calls.users_update),
        ("POST", "/v1/users/{name}/reset", calls.users_reset),
        ("GET", "/v1/tokens", calls.tokens_list),
        ("POST", "/v1/tokens", calls.tokens_add),
        ("POST", "/v1/tokens/remove", calls.tokens_remove),
        ("POST", "/v1/certificates/user", calls.sign_user),
        ("POST", "/v1/certificates/database-server", calls.sign_database_server),
        ("POST", "/v1/certificates/database-client", calls.database_client),
        ("GET", "/v1/recordings", recorded.list),
        ("POST", "/v1/recordings/{id}", recorded.offer),
        ("PUT", "/v1/recordings/{id}/parts/{offset:int}", recorded.append),
        ("POST", "/v1/recordings/{id}/complete", recorded.complete),
        ("GET", "/v1/recordings/{id}", recorded.get),
        ("GET", "/v1/recordings/{id}/content", recorded.content),
        ("DELETE", "/v1/recordings/{id}", recorded.remove),
    ]
    return Starlette(
        routes=[_route(method, path, endpoint, service.denials) for method, path, endpoint in routes],
        exception_handlers={HTTPException: _http_error},
    )


class _Calls:
    """One method for each path: parse, call, print."""

    def __init__(self, service: Service, administration: Administration, sign_of_life: float) -> None:
        self._service = service
        self._administration = administration
        self._sign_of_life = sign_of_life

    async def status(self, request: Request) -> Response:
        return _answer(await self._service.status(_caller(request)))

    async def cas(self, request: Request) -> Response:
        return JSONResponse((await self._service.cas(_caller(request))).to_json())

    async def authenticate(self, request: Request) -> Response:
        return _answer(await self._service.authenticate(_caller(request), await _body(request, messages.Authenticate)))

    async def join(self, request: Request) -> Response:
        return _answer(await self._service.join(_caller(request), await _body(request, messages.Join)))

    async def reissue(self, request: Request) -> Response:
        return _answer(await self._service.reissue(_caller(request), await _body(request, messages.Reissue)))

    async def renew(self, request: Request) -> Response:
        return _answer(await self._service.renew(_caller(request), await _body(request, messages.Renew)))

    async def heartbeat(self, request: Request) -> Response:
        first = request.query_params.get("first") == "true"
        await self._service.heartbeat(_caller(request), await _resource(request), first)
        return _done()

    async def watch(self, request: Request) -> Response:
        return _Watch(self._service, _caller(request), self._sign_of_life)

    async def emit(self, request: Request) -> Response:
        body = await _body(request, messages.Events)
        await self._service.emit(_caller(request), [from_json(one) for one in body.events])
        return _done()

    async def events(self, request: Request) -> Response:
        query = request.query_params
        before, event_type = query.get("before") or None, query.get("type") or None
        page = await self._administration.events(_caller(request), _limit(request), before, event_type)
        return JSONResponse({"events": [to_json(one) for one in page.events], "next": page.next})

    async def list(self, request: Request) -> Response:
        found = await self._administration.list(_caller(request), request.path_params["kind"])
        return JSONResponse({"resources": [to_document(one) for one in found]})

    async def get(self, request: Request) -> Response:
        kind, name = request.path_params["kind"], request.path_params["name"]
        return JSONResponse(to_document(await self._administration.get(_caller(request), kind, name)))

    async def create(self, request: Request) -> Response:
        force = request.query_params.get("force") == "true"
        made = await self._administration.create(_caller(request), await _resource(request), force)
        return JSONResponse(to_document(made))

    async def delete(self, request: Request) -> Response:
        kind, name = request.path_params["kind"], request.path_params["name"]
        await self._administration.delete(_caller(request), kind, name)
        return _done()

    async def users_add(self, request: Request) -> Response:
        user = await self._administration.users_add(_caller(request), await _body(request, messages.NewUser))
        return JSONResponse(to_document(user))

    async def users_update(self, request: Request) -> Response:
        body = await _body(request, messages.UserChange)
        locked = await self._administration.users_update(_caller(request), request.path_params["name"], body)
        return JSONResponse({"locked": locked})

    async def databases_allow(self, request: Request) -> Response:
        await self._administration.databases_allow(_caller(request), request.path_params["name"])
        return _done()

    async def users_reset(self, request: Request) -> Response:
        body = await _body(request, messages.NewPassword)
        await self._administration.users_reset(_caller(request), request.path_params["name"], body)
        return _done()

    async def tokens_list(self, request: Request) -> Response:
        tokens = await self._administration.tokens_list(_caller(request))
        return JSONResponse({"tokens": [one.model_dump(mode="json") for one in tokens]})

    async def tokens_add(self, request: Request) -> Response:
        body = await _body(request, messages.NewToken)
        return _answer(await self._administration.tokens_add(_caller(request), body))

    async def tokens_remove(self, request: Request) -> Response:
        body = await _body(request, messages.NamedToken)
        await self._administration.tokens_remove(_caller(request), body)
        return _done()

    async def sign_user(self, request: Request) -> Response:
        body = await _body(request, messages.SignUser)
        return _answer(await self._administration.sign_user(_caller(request), body))

    async def sign_database_server(self, request: Request) -> Response:
        body = await _body(request, messages.SignServer)
        return _answer(await self._administration.sign_database_server(_caller(request), body))

    async def database_client(self, request: Request) -> Response:
        body = await _body(request, messages.DatabaseClient)
        return _answer(await self._service.database_client(_caller(request), body))


class _Recordings:
    """One method for each path below /v1/recordings."""

    def __init__(self, recordings: RecordingService) -> None:
        self._recordings = recordings

    async def offer(self, request: Request) -> Response:
        body = await _body(request, messages.RecordingOffer)
        return _answer(await self._recordings.offer(_caller(request), request.path_params["id"], body))

    async def append(self, request: Request) -> Response:
        recording, offset = request.path_params["id"], request.path_params["offset"]
        return _answer(await self._recordings.append(_caller(request), recording, offset, await request.body()))

    async def complete(self, request: Request) -> Response:
        body = await _body(request, messages.RecordingOffer)
        return _answer(await self._recordings.complete(_caller(request), request.path_params["id"], body))

    async def list(self, request: Request) -> Response:
        query = request.query_params
        wanted = Filter(query.get("user", ""), query.get("node", ""), query.get("since", ""))
        before = query.get("before") or None
        return _answer(await self._recordings.list(_caller(request), wanted, _limit(request), before))

    async def get(self, request: Request) -> Response:
        return _answer(await self._recordings.get(_caller(request), request.path_params["id"]))

    async def content(self, request: Request) -> Response:
        size, octets = await self._recordings.content(_caller(request), request.path_params["id"])
        headers = {"content-length": str(size)}
        return StreamingResponse(octets, headers=headers, media_type="application/x-asciicast")

    async def remove(self, request: Request) -> Response:
        await self._recordings.remove(_caller(request), request.path_params["id"])
        return _done()


class _Watch(Response):
    """A watch as an endless answer of JSON lines, ended by either side."""

    def __init__(self, service: Service, caller: Identity, sign_of_life: float) -> None:
        super().__init__(media_type="application/jsonl")
        del self.headers["content-length"]
        self._service, self._caller, self._sign_of_life = service, caller, sign_of_life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends lines until the peer leaves, the watcher has fallen behind, or the caller is refused."""
        turn = asyncio.Lock()
        started = False
        refused: list[Failure] = []

        async def write(line: Line) -> None:
            nonlocal started
            async with turn:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})

        async def say_alive() -> None:
            while True:
                await asyncio.sleep(self._sign_of_life)
                await write({"type": "alive"})

        async def wait_for_end() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue

        async def follow() -> None:
            try:
                await self._service.watch(self._caller, write)
            except Failure as error:
                if started:
                    raise
                refused.append(error)

        if await _first(follow(), say_alive(), wait_for_end()) and started:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        for error in refused:
            if isinstance(error, refusals.Refusal):
                await self._service.denials.note(self._caller, "watch", error, {})
            await _refused(error)(scope, receive, send)


async def _first(*works: Coroutine[Any, Any, None]) -> bool:
    """Runs coroutines until one of them ends, then cancels the others; whether the first of them ended by itself."""
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(work) for work in works]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except* (ConnectionError, TimeoutError) as gone:
        _log.debug("watch ended by its peer", error=str(gone.exceptions[0]))
    return tasks[0].done() and not tasks[0].cancelled() and tasks[0].exception() is None


def _caller(request: Request) -> Identity:
    identity = request.state.identity
    assert isinstance(identity, Identity), "the server serves nobody without an identity"
    return identity


def _limit(request: Request) -> int:
    limit = request.query_params.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 7):
        raise refusals.Invalid("limit must be a number")
    return int(limit)


async def _body(request: Request, shape: type[Body]) -> Body:
    return shape.model_validate_json(await request.body() or b"{}")


async def _resource(request: Request) -> Resource:
    try:
        document = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise refusals.Invalid("the body is not JSON") from None
    return parse_document(document)


def _answer(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


def _done() -> Response:
    return JSONResponse({})


def _route(method: str, path: str, endpoint: Endpoint, denials: Denials) -> Route:
    operation = f"recording_{endpoint.__name__}" if path.startswith("/v1/recordings") else endpoint.__name__
    return Route(path, _guarded(endpoint, operation, denials), methods=[method])


def _guarded(endpoint: Endpoint, operation: str, denials: Denials) -> Endpoint:
    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except refusals.Refusal as error:
            await denials.note(_caller(request), operation, error, _asked(request))
            return _refused(error)
        except Failure as error:
            return _refused(error)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return _error(400, "bad_request", f"{where + ': ' if where else ''}{first['msg']}")
        except Exception as error:  # noqa: BLE001 - one request's fault stays with it, and its traceback with us
            _log.error("operation failed", path=request.url.path, error=repr(error), exc_info=error)
            return _error(500, "internal", "the auth service failed to answer; its log says why")

    return call


def _asked(request: Request) -> dict[str, object]:
    """What the path says of a request, but for tokens, whose names are secrets."""
    asked = dict(request.path_params)
    if "id" in asked:
        asked["session"] = asked.pop("id")
    if asked.get("kind") == "token":
        asked.pop("name", None)
    return asked


def _refused(error: Failure) -> Response:
    match error:
        case refusals.Forbidden():
            return _error(403, error.code, str(error))
        case refusals.Refusal():
            return _error(STATUSES[type(error)], error.code, str(error))
        case SpoolError():
            _log.error("not recorded", error=str(error))
            return _error(503, "audit_unavailable", str(NotRecorded()))
        case StorageError():
            _log.error("storage failed", error=str(error))
            return _error(503, "storage", "the auth service's storage does not answer; its log says why")
        case _:
            return _error(400, "bad_request", str(error))


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status)


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "bad_request"}.get(status, "bad_request")
    return _error(status, code, f"the auth API has no such operation (HTTP status {status})")
