"""What a proxy says first on every stream that it dials through a tunnel, and what the agent answers.

Belongs here: the values and their strict reading. Not here: I/O and deadlines (`tunnel.dial`), framing (`wire.frame`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from monoport.wire.frame import FrameError

VERSION = 1
MAX_FEATURES = 16  # names of what a session is beyond an ordinary one; a protocol has a few
MAX_FIELD = 4_096  # names and reasons; the certificate alone may fill the rest of a frame


class Kind(StrEnum):
    """What the agent shall do with the stream."""

    SSH = "ssh"
    DATABASE = "db"
    CANCEL = "db-cancel"
    ORDERS = "dial-back"  # no resource: over this channel the proxy orders dial-backs, as long as the tunnel is open


@dataclass(frozen=True, slots=True)
class Preface:
    """One dial request: who calls, from where, and which resource; the agent checks all of it again.

    `certificate` is the user's X.509 certificate (PEM) or OpenSSH certificate (one line): the proxy vouches only that
    its key was proven. `host_id` is filled in by `Tunnels.dial`. `process_id` and `secret` are the key that the proxy
    gave its client for cancelling (PostgreSQL protocol, BackendKeyData and CancelRequest). `features` are those of
    `access.question.DatabaseLogin`. `sealed`: after the answer the proxy steps aside, see `tunnel.sealing`.
    """

    connection: str
    kind: Kind
    target: str
    certificate: str = ""
    source: str = ""
    host_id: str = ""
    user: str = ""
    database: str = ""
    process_id: int = 0
    secret: bytes = b""
    features: tuple[str, ...] = ()
    sealed: bool = False
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Accepted:
    """The agent serves the request; the resource's bytes follow."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent does not serve the request: a code for machines, one line for people."""

    code: str
    reason: str


Answer = Accepted | Refused


def preface_object(preface: Preface) -> dict[str, Any]:
    """Return the JSON object of `preface`; `secret` travels as hexadecimal digits."""
    found: dict[str, Any] = {field.name: getattr(preface, field.name) for field in fields(preface)}
    found["kind"] = preface.kind.value
    found["secret"] = preface.secret.hex()
    found["features"] = list(preface.features)
    if not preface.sealed:
        del found["sealed"]  # agents of earlier versions do not know it
    return found


def read_preface(obj: Mapping[str, Any]) -> Preface:
    """Return the preface in a frame's object.

    Raises FrameError for a missing, unknown, oversized or wrongly typed field.
    """
    if obj.get("version") != VERSION:
        raise FrameError(f"preface of version {_shown(obj.get('version'))}, this agent speaks {VERSION}")
    unknown = obj.keys() - {field.name for field in fields(Preface)}
    if unknown:
        raise FrameError(f"preface with unknown field {_shown(min(unknown))}")
    try:
        kind = Kind(_text(obj, "kind"))
        secret = bytes.fromhex(_text(obj, "secret"))
    except ValueError as error:
        raise FrameError(f"preface: {error}") from error
    process_id = obj.get("process_id", 0)
    if not isinstance(process_id, int) or isinstance(process_id, bool) or not -(2**31) <= process_id < 2**32:
        raise FrameError("preface: process_id is not a 32-bit number")
    return Preface(
        connection=_text(obj, "connection", required=True),
        kind=kind,
        target=_text(obj, "target", required=True),
        certificate=_text(obj, "certificate", limit=65_536),
        source=_text(obj, "source"),
        host_id=_text(obj, "host_id", required=True),
        user=_text(obj, "user"),
        database=_text(obj, "database"),
        process_id=process_id,
        secret=secret,
        features=_features(obj),
        sealed=_yes(obj, "sealed"),
    )


def answer_object(answer: Answer) -> dict[str, Any]:
    """Return the JSON object of `answer`."""
    if isinstance(answer, Refused):
        return {"ok": False, "code": answer.code[:MAX_FIELD], "reason": answer.reason[:MAX_FIELD]}
    return {"ok": True}


def read_answer(obj: Mapping[str, Any]) -> Answer:
    """Return the answer in a frame's object; raises FrameError."""
    match obj.get("ok"):
        case True:
            return Accepted()
        case False:
            return Refused(_text(obj, "code"), _text(obj, "reason"))
        case _:
            raise FrameError("answer without a yes or no")


def _text(obj: Mapping[str, Any], name: str, *, limit: int = MAX_FIELD, required: bool = False) -> str:
    found = obj.get(name, "")
    if not isinstance(found, str):
        raise FrameError(f"{name} is not a string")
    if len(found) > limit:
        raise FrameError(f"{name} has {len(found)} characters, limit {limit}")
    if required and not found:
        raise FrameError(f"{name} is missing")
    return found


def _yes(obj: Mapping[str, Any], name: str) -> bool:
    found = obj.get(name, False)
    if not isinstance(found, bool):
        raise FrameError(f"{name} is neither true nor false")
    return found


def _features(obj: Mapping[str, Any]) -> tuple[str, ...]:
    found = obj.get("features", [])
    if not isinstance(found, list) or len(found) > MAX_FEATURES:
        raise FrameError(f"features are not a list of at most {MAX_FEATURES}")
    return tuple(_text({"feature": each}, "feature", required=True) for each in found)


def _shown(value: object) -> str:
    return ascii(value)[:64]
