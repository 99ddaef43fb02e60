"""What `tctl` asks of the daemon beside it: its connections, its routing table, and why a connection goes where.

Belongs here: answers over `data_dir/daemon.sock`, which only the daemon's own user can open. Does not belong
here: how they are shown (cli) and what they say (routing.explain, proxy.registry).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, assert_never

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monoport.access.identity import Identity
from monoport.access.locks import lock_for
from monoport.audit.outage import Outage
from monoport.daemon.reach import Aim, Known, certified, explained, supposed
from monoport.errors import Failure
from monoport.net.http import serve_http
from monoport.net.stream import Stream
from monoport.net.unix import serve_unix
from monoport.protocols import TABLE
from monoport.protocols.description import Description
from monoport.proxy.connection import FrontDoor
from monoport.routing.explain import explain, listing
from monoport.routing.match import decide
from monoport.routing.outcome import Answer, Ask, Refusal
from monoport.routing.outcome import Route as Routed
from monoport.wire.clienthello import ClientHello
from monoport.wire.names import HostNameError, canonical


class Question(BaseModel):
    """What a client would offer, which certificate (PEM) or user (document) it would show, and what it is after."""

    model_config = ConfigDict(extra="forbid")

    sni: Annotated[str, Field(max_length=255)] = ""
    alpn: Annotated[list[Annotated[str, Field(min_length=1, max_length=255)]], Field(max_length=64)] = []
    certificate: Annotated[str, Field(max_length=65_536)] = ""
    user: dict[str, Any] | None = None
    aim: Aim | None = None


async def serve(
    path: Path,
    front: Callable[[], FrontDoor | None],
    known: Callable[[], Known],
    outages: Callable[[], Mapping[str, Outage]],
    table: Mapping[str, Description] = TABLE,
) -> None:
    """Answer on a Unix socket that only this daemon's user can open, until cancelled; raises Failure."""
    app = application(front, known, outages, table)

    async def answer_one(stream: Stream) -> None:
        await serve_http(stream, app, state={})

    await serve_unix(path, answer_one)


def application(
    front: Callable[[], FrontDoor | None],
    known: Callable[[], Known],
    outages: Callable[[], Mapping[str, Outage]],
    table: Mapping[str, Description] = TABLE,
) -> Starlette:
    """The ASGI application of the daemon's socket; `front` gives None where no proxy runs (yet).

    known: gives what the proxy knows of the cluster; asked only where there is one. outages: of each role's audit log.
    table: the database protocols.
    """

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
        return JSONResponse(answer(question, door(), known(), table))

    async def health(_request: Request) -> Response:
        return JSONResponse({"audit": {role: asdict(one.health) for role, one in outages().items()}})

    async def failed(_request: Request, error: Exception) -> Response:
        return JSONResponse({"error": {"code": "failed", "message": str(error)}}, 400)

    paths = [
        Route("/health", health),
        Route("/conns", conns),
        Route("/routes", routes),
        Route("/explain", why, methods=["POST"]),
    ]
    return Starlette(routes=paths, exception_handlers={Failure: failed})


def _connection(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """One connection or refusal as `tctl conns ls` lists it."""
    leads = " ".join(str(part) for part in (row["kind"], row["target"] or row["protocol"]) if part)
    return {
        "id": row["id"],
        "source": row["source"],
        "user": row["user"] or "",
        "route": (leads or row["rule"] or "") + (", sealed" if row["sealed"] else ""),
        "sni": row["server_name"] or "",
        "alpn": ",".join(row["alpn"]),
        "client": row["client"] or "",
        "state": row["state"],
        "age_s": max(0.0, (now - datetime.fromisoformat(row["started"])).total_seconds()),
        "bytes_in": row["bytes_in"],
        "bytes_out": row["bytes_out"],
        "reason": f"{row['code']}: {row['reason']}" if row["code"] else "",
    }


def answer(
    question: Question, front: FrontDoor, known: Known, table: Mapping[str, Description] = TABLE
) -> dict[str, Any]:
    """Route a made-up ClientHello with the listener's own function and say what it, and each rule, decided.

    Then, if the question names a node or database, what was looked at to decide whether the caller may reach it.

    Raises Failure: the server name is none, the user's document is malformed, or what is to be reached is not there.
    """
    aim = question.aim
    offered = question.alpn
    if aim is not None and not offered and not question.sni:
        offered = [aim.protocol_name(known, table)]
    try:
        name = canonical(question.sni) if question.sni else None
    except HostNameError as error:
        raise Failure(str(error)) from error
    hello = ClientHello(server_name=name, alpn=tuple(offered))
    outcome = decide(hello, front.table)
    steps = [{"rule": step.rule, "verdict": str(step.verdict), "why": step.why} for step in explain(hello, front.table)]
    match outcome:
        case Routed():
            words = f"{outcome.kind}" + (f" {outcome.target}" if outcome.target else "") + f", by rule {outcome.rule}"
            steps += _identity(question, outcome, front, known)
        case Refusal():
            words = f"refused: {outcome.code}: {outcome.reason}"
        case Answer() | None:
            words = "answered; more bytes decide"
        case unknown:
            assert_never(unknown)
    answered: dict[str, Any] = {"outcome": words, "steps": steps}
    if aim is not None:
        answered["access"] = explained(aim, _caller(question, front, known), known, table, datetime.now(UTC))
    return answered


def _caller(question: Question, front: FrontDoor, known: Known) -> Identity:
    """The identity of the question's certificate, or its user's as if signed in now; raises Failure."""
    if question.user is not None:
        return supposed(question.user, front.table.cluster, known, datetime.now(UTC))
    if not question.certificate:
        raise Failure("whose access? expected a user or a certificate")
    return certified(question.certificate, front.cas())


def _identity(question: Question, route: Routed, front: FrontDoor, known: Known) -> list[dict[str, str]]:
    """What the route's TLS asks of the client, and what a given certificate or user would be to it."""
    if route.tls is None or route.tls.ask is Ask.NONE:
        why = "the handler authenticates inside" if route.tls else "passed through: TLS ends at the service itself"
        return [{"rule": "client certificate", "verdict": "not asked", "why": why}]
    asked = {"rule": "client certificate", "verdict": str(route.tls.ask), "why": f"of the {route.tls.trust} CA"}
    if not question.certificate and question.user is None:
        return [asked]
    try:
        identity = _caller(question, front, known)
    except Failure as error:
        return [asked, {"rule": "identity", "verdict": "refused", "why": str(error)}]
    if str(identity.kind) != str(route.tls.trust):
        why = f"{identity} is of the {identity.kind} CA: the handshake fails"
        return [asked, {"rule": "identity", "verdict": "refused", "why": why}]
    lock = lock_for(identity, list(known.locks), datetime.now(UTC))
    verdict = "locked" if lock else "known" if question.certificate else "assumed"
    why = f"{identity}, roles {', '.join(identity.roles)}, until {identity.expires.isoformat(timespec='seconds')}"
    return [asked, {"rule": "identity", "verdict": verdict, "why": why}]
