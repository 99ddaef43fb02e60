"""What `tctl` asks of the daemon beside it: its connections, its routing table, and why a connection goes where.

Belongs here: three answers over `data_dir/daemon.sock`, which only the daemon's own user can open. Does not belong
here: how they are shown (cli) and what they say (routing.explain, proxy.registry).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, assert_never

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monoport.access.identity import IdentityError, from_x509
from monoport.access.locks import lock_for
from monoport.access.resources import Lock
from monoport.errors import Failure
from monoport.net.http import serve_http
from monoport.net.stream import Stream
from monoport.net.unix import serve_unix
from monoport.proxy.connection import FrontDoor
from monoport.routing.explain import explain, listing
from monoport.routing.match import decide
from monoport.routing.outcome import Answer, Ask, Refusal
from monoport.routing.outcome import Route as Routed
from monoport.wire.clienthello import ClientHello
from monoport.wire.names import HostNameError, canonical


class Question(BaseModel):
    """What a client would offer, and which certificate (PEM) or user it would show."""

    model_config = ConfigDict(extra="forbid")

    sni: Annotated[str, Field(max_length=255)] = ""
    alpn: Annotated[list[Annotated[str, Field(min_length=1, max_length=255)]], Field(max_length=64)] = []
    certificate: Annotated[str, Field(max_length=65_536)] = ""
    user: Annotated[str, Field(max_length=255)] = ""


async def serve(path: Path, front: Callable[[], FrontDoor | None], locks: Callable[[], Iterable[Lock]]) -> None:
    """Answer on a Unix socket that only this daemon's user can open, until cancelled; raises Failure."""
    app = application(front, locks)

    async def answer_one(stream: Stream) -> None:
        await serve_http(stream, app, state={})

    await serve_unix(path, answer_one)


def application(front: Callable[[], FrontDoor | None], locks: Callable[[], Iterable[Lock]]) -> Starlette:
    """The ASGI application of the daemon's socket; `front` gives None where no proxy runs (yet)."""

    def door() -> FrontDoor:
        found = front()
        if found is None:
            raise Failure("no proxy runs in this daemon: connections and routes are a proxy's")
        return found

    async def conns(_request: Request) -> Response:
        return JSONResponse([_connection(row, datetime.now(UTC)) for row in door().connections.rows()])

    async def routes(_request: Request) -> Response:
        rows = listing(door().table)
        return JSONResponse(
            [
                {
                    "rule": row.rule,
                    "when": f"{row.first_bytes}: {row.condition}",
                    "goes_to": row.goes_to if row.served else f"refused: not enabled ({row.goes_to})",
                    "tls": row.tls,
                }
                for row in rows
            ]
        )

    async def why(request: Request) -> Response:
        try:
            question = Question.model_validate_json(await request.body())
        except ValidationError as error:
            raise Failure(f"the question is not understood: {error.errors()[0]['msg']}") from error
        return JSONResponse(answer(question, door(), locks()))

    async def failed(_request: Request, error: Exception) -> Response:
        return JSONResponse({"error": {"code": "failed", "message": str(error)}}, 400)

    paths = [Route("/conns", conns), Route("/routes", routes), Route("/explain", why, methods=["POST"])]
    return Starlette(routes=paths, exception_handlers={Failure: failed})


def _connection(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """One connection or refusal as `tctl conns ls` lists it."""
    leads = " ".join(str(part) for part in (row["kind"], row["target"] or row["protocol"]) if part)
    return {
        "id": row["id"],
        "source": row["source"],
        "user": row["user"] or "",
        "route": leads or row["rule"] or "",
        "sni": row["server_name"] or "",
        "alpn": ",".join(row["alpn"]),
        "client": row["client"] or "",
        "state": row["state"],
        "age_s": max(0.0, (now - datetime.fromisoformat(row["started"])).total_seconds()),
        "bytes_in": row["bytes_in"],
        "bytes_out": row["bytes_out"],
        "reason": f"{row['code']}: {row['reason']}" if row["code"] else "",
    }


def answer(question: Question, front: FrontDoor, locks: Iterable[Lock]) -> dict[str, Any]:
    """Route a made-up ClientHello with the listener's own function and say what it, and each rule, decided.

    Raises Failure: the server name is none.
    """
    try:
        name = canonical(question.sni) if question.sni else None
    except HostNameError as error:
        raise Failure(str(error)) from error
    hello = ClientHello(server_name=name, alpn=tuple(question.alpn))
    outcome = decide(hello, front.table)
    steps = [{"rule": step.rule, "verdict": str(step.verdict), "why": step.why} for step in explain(hello, front.table)]
    match outcome:
        case Routed():
            words = f"{outcome.kind}" + (f" {outcome.target}" if outcome.target else "") + f", by rule {outcome.rule}"
            steps += _identity(question, outcome, front, locks)
        case Refusal():
            words = f"refused: {outcome.code}: {outcome.reason}"
        case Answer() | None:
            words = "answered; more bytes decide"
        case unknown:
            assert_never(unknown)
    return {"outcome": words, "steps": steps}


def _identity(question: Question, route: Routed, front: FrontDoor, locks: Iterable[Lock]) -> list[dict[str, str]]:
    """What the route's TLS asks of the client, and what a given certificate or user would be to it."""
    if route.tls is None or route.tls.ask is Ask.NONE:
        why = "the handler authenticates inside" if route.tls else "passed through: TLS ends at the service itself"
        return [{"rule": "client certificate", "verdict": "not asked", "why": why}]
    asked = {"rule": "client certificate", "verdict": str(route.tls.ask), "why": f"of the {route.tls.trust} CA"}
    if question.certificate:
        try:
            identity = from_x509(x509.load_pem_x509_certificate(question.certificate.encode()), front.cas())
        except (IdentityError, ValueError) as error:
            return [asked, {"rule": "identity", "verdict": "refused", "why": str(error)}]
        if str(identity.kind) != str(route.tls.trust):
            why = f"{identity} is of the {identity.kind} CA: the handshake fails"
            return [asked, {"rule": "identity", "verdict": "refused", "why": why}]
        lock = lock_for(identity, list(locks), datetime.now(UTC))
        verdict = "locked" if lock else "known"
        why = f"{identity}, roles {', '.join(identity.roles)}, until {identity.expires.isoformat(timespec='seconds')}"
        return [asked, {"rule": "identity", "verdict": verdict, "why": why}]
    if question.user:
        why = f"{question.user}@{front.table.cluster} with a certificate of the {route.tls.trust} CA"
        return [asked, {"rule": "identity", "verdict": "assumed", "why": why}]
    return [asked]
