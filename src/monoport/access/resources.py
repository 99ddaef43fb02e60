"""Resource documents: `{kind, version, metadata: {name, labels, expires}, spec}` as frozen models.

Belongs here: the shape of every document, its bounds, and one-line errors that name the path of what is wrong.
Does not: single fields (fields.py), reading files (cli), storing (auth), evaluating roles (roles.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from monoport.access.fields import (
    DNS_LABEL,
    MAX_LIST,
    DnsLabel,
    Instant,
    Labels,
    Name,
    Patterns,
    Selector,
    Text,
    Texts,
    Ttl,
    sequence,
)
from monoport.errors import Failure

VERBS: Final = ("read", "list", "create", "update", "delete")
API_KINDS: Final = (
    *("user", "role", "token", "lock", "node", "db", "app", "kube", "event", "recording", "session"),
    *("trusted_cluster", "proxy", "auth", "certificate"),
)
TOKEN_TYPES: Final = ("node", "db", "app", "kube", "trusted_cluster", "proxy", "auth")

_RESERVED: Final = frozenset({"kube", "db"})


class ResourceError(Failure):
    """A document has the wrong shape; the text names the path of what is wrong."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Metadata(_Model):
    """Name, labels and expiry that every document has."""

    name: Name
    labels: Labels = {}
    expires: Instant | None = None
    description: Annotated[str, Field(max_length=1024)] = ""


class _Document(_Model):
    version: Literal["v1"] = "v1"
    metadata: Metadata

    @property
    def name(self) -> str:
        """The name that identifies it among its kind."""
        return self.metadata.name


class Rule(_Model):
    """Verbs allowed or denied on kinds of the auth service's own resources."""

    resources: Annotated[tuple[Literal["*"] | str, ...], Field(min_length=1), BeforeValidator(sequence)]
    verbs: Annotated[tuple[Literal["*"] | str, ...], Field(min_length=1), BeforeValidator(sequence)]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for what, values, known in (("resources", self.resources, API_KINDS), ("verbs", self.verbs, VERBS)):
            if unknown := sorted(set(values) - {*known, "*"}):
                raise ValueError(f"unknown {what} {', '.join(map(ascii, unknown))}, expected * or {', '.join(known)}")
        return self


class KubernetesResource(_Model):
    """One pattern of Kubernetes objects."""

    kind: Text
    namespace: Text = "*"
    name: Text = "*"
    verbs: Texts = ("*",)


class Conditions(_Model):
    """One side, allow or deny, of a role."""

    logins: Patterns = ()
    node_labels: Selector = {}
    db_labels: Selector = {}
    db_users: Patterns = ()
    db_names: Patterns = ()
    db_features: Patterns = ()
    app_labels: Selector = {}
    kubernetes_labels: Selector = {}
    kubernetes_users: Patterns = ()
    kubernetes_groups: Patterns = ()
    kubernetes_resources: Annotated[tuple[KubernetesResource, ...], BeforeValidator(sequence)] = ()
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_LIST), BeforeValidator(sequence)] = ()


class Recording(StrEnum):
    """Whether terminal sessions are recorded, and what happens to one that cannot be; the last is the strictest."""

    OFF = "off"
    BEST_EFFORT = "best_effort"  # it goes on, and audit and log say that it is not recorded
    STRICT = "strict"  # it ends, or does not begin

    @property
    def strictness(self) -> int:
        """Grows with how much is asked."""
        return tuple(Recording).index(self)


def _recording(value: object) -> object:
    if isinstance(value, bool):  # as `yes` and `no` were written before there were three; YAML 1.1 reads off as no
        return Recording.BEST_EFFORT if value else Recording.OFF
    if isinstance(value, str):
        try:
            return Recording(value)
        except ValueError:
            raise ValueError(f"expected {', '.join(Recording)}") from None
    return value


class RoleOptions(_Model):
    """How sessions behave that a role allows; whatever is not granted is off, but for recording.

    What may be forwarded (`access.forwarding` says what each is) has three values: an explicit `false` takes away what
    another role grants.
    """

    max_session_ttl: Ttl = timedelta(hours=12)
    forward_agent: bool | None = None
    port_forwarding: bool | None = None
    remote_port_forwarding: bool | None = None
    unix_forwarding: bool | None = None
    remote_unix_forwarding: bool | None = None
    permit_x11_forwarding: bool | None = None
    gateway_ports: bool | None = None
    record_session: Annotated[Recording, BeforeValidator(_recording)] = Recording.BEST_EFFORT
    record_input: bool = False


class RoleSpec(_Model):
    """What a role allows, what it denies, and how."""

    allow: Conditions = Conditions()
    deny: Conditions = Conditions()
    options: RoleOptions = RoleOptions()


class Role(_Document):
    """Rights that users hold by name."""

    kind: Literal["role"] = "role"
    spec: RoleSpec = RoleSpec()


class NodeSpec(_Model):
    """Where a node is: its names, the host that serves it, and whether that host's own sshd serves the sessions."""

    hostname: Text
    host_id: Name
    openssh: bool = False


class Node(_Document):
    """An SSH server; `metadata.name` is its host id."""

    kind: Literal["node"] = "node"
    spec: NodeSpec

    @model_validator(mode="after")
    def _named_by_host(self) -> Self:
        if self.metadata.name != self.spec.host_id:
            raise ValueError("metadata.name must be spec.host_id")
        return self


class DatabaseSpec(_Model):
    """What is published of a database; where it really listens stays with its agent."""

    protocol: DnsLabel
    host_id: Name
    server_version: Annotated[str, Field(max_length=128, pattern=r"^[\x20-\x7e]*$")] = ""  # as the server itself says
    state: Literal["unknown", "up", "down"] = "unknown"  # whether the server answered its agent's last question
    problem: Annotated[str, Field(max_length=256, pattern=r"^[\x20-\x7e]*$")] = ""  # why it is down


class Database(_Document):
    """A database behind an agent; `metadata.name` is a lower-case DNS label."""

    kind: Literal["db"] = "db"
    spec: DatabaseSpec

    @model_validator(mode="after")
    def _dns_label(self) -> Self:
        if self.name in _RESERVED or not DNS_LABEL.fullmatch(self.name):
            raise ValueError(f"metadata.name must be a lower-case DNS label other than {', '.join(sorted(_RESERVED))}")
        return self


class LockTarget(_Model):
    """Exactly one of a user, a role, a node (host id or hostname) or a login."""

    user: Text | None = None
    role: Text | None = None
    node: Text | None = None
    login: Text | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(one is not None for one in (self.user, self.role, self.node, self.login)) != 1:
            raise ValueError("expected exactly one of user, role, node, login")
        return self

    def __str__(self) -> str:
        return next(f"{what} {value}" for what, value in self if value is not None)


class LockSpec(_Model):
    """Who or what is locked, until when, and a message for the administrator.

    With `issued_before`, only identities issued before that instant are concerned: old certificates, not new logins.
    """

    target: LockTarget
    message: Annotated[str, Field(max_length=1024)] = ""
    expires: Instant | None = None
    issued_before: Instant | None = None


class Lock(_Document):
    """Ends and refuses every session of its target."""

    kind: Literal["lock"] = "lock"
    spec: LockSpec

    @property
    def passes(self) -> bool:
        """Whether signing in again is enough: only what was issued before an instant is locked."""
        return self.spec.issued_before is not None

    def in_force(self, now: datetime) -> bool:
        """Tell whether the lock holds at `now`, UTC; with two expiries, the earlier counts."""
        return all(end is None or now < end for end in (self.spec.expires, self.metadata.expires))


class TokenSpec(_Model):
    """What a joining process may become, and the only nodes and databases it may then serve, if any are named."""

    types: Annotated[
        tuple[Literal["node", "db", "app", "kube", "trusted_cluster", "proxy", "auth"], ...],
        Field(min_length=1),
        BeforeValidator(sequence),
    ]
    nodes: Texts = ()
    databases: Texts = ()


class Token(_Document):
    """Lets a process join the cluster; its name is the secret."""

    kind: Literal["token"] = "token"
    spec: TokenSpec


class UserSpec(_Model):
    """The public part of a user: no password, no second factor."""

    roles: Texts = ()
    traits: Annotated[dict[Text, Texts], Field(max_length=MAX_LIST)] = {}


class User(_Document):
    """A local user."""

    kind: Literal["user"] = "user"
    spec: UserSpec = UserSpec()


Resource = Role | Node | Database | Lock | Token | User

KINDS: Final[Mapping[str, type[Resource]]] = {
    "role": Role, "node": Node, "db": Database, "lock": Lock, "token": Token, "user": User,
}  # fmt: skip


def parse_document(document: object) -> Resource:
    """Return the resource that a document, as read from YAML or JSON, describes.

    Raises:
        ResourceError: one line, `kind/name: path: what is wrong`.
    """
    if not isinstance(document, Mapping):
        raise ResourceError("expected a document with kind, version, metadata and spec")
    kind = document.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ResourceError(f"kind: expected one of {', '.join(KINDS)}")
    try:
        return model.model_validate(dict(document))
    except ValidationError as error:
        raise ResourceError(_explain(str(kind), document, error)) from error


def to_document(resource: Resource) -> dict[str, object]:
    """Return the document, of JSON types, that `parse_document` turns into an equal resource."""
    document = resource.model_dump(mode="json", exclude_defaults=True)
    return {"kind": resource.kind, "version": resource.version, **document}


_TEXTS: Final = {"extra_forbidden": "unknown key", "missing": "is missing"}  # pydantic's own words are for programmers


def _explain(kind: str, document: Mapping[object, object], error: ValidationError) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    title = f"{kind}/{name}" if isinstance(name, str) and name.isprintable() else kind
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    path = ".".join(ascii(part).strip("'") if isinstance(part, str) else str(part) for part in first["loc"])
    text = _TEXTS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{title}: {path + ': ' if path else ''}{text[:1].lower()}{text[1:]}{more}"
