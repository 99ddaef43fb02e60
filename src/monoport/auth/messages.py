"""What travels over the auth API: requests and answers as values.

Belongs here: their shape and bounds. What they mean, `service` decides; resources have their shapes in
`access.resources`. Public keys go in, certificates come out; there is no field a private key would fit into.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from monoport.audit.events import Event
from monoport.auth.authorities import TrustedCas

TokenType = Literal["node", "db", "app", "kube", "trusted_cluster", "proxy", "auth"]
TOKEN_TYPES: tuple[TokenType, ...] = ("node", "db", "app", "kube", "trusted_cluster", "proxy", "auth")

MAX_TTL = 366 * 86_400  # seconds; roles and authorities set the real limits, this one keeps dates representable

Name = Annotated[str, Field(min_length=1, max_length=255)]
Names = Annotated[tuple[Name, ...], Field(max_length=64)]
PublicKey = Annotated[str, Field(min_length=1, max_length=4096)]  # an RSA key of 8192 bits has 1.5 KiB
CertificatePem = Annotated[str, Field(min_length=1, max_length=32_768)]
Seconds = Annotated[int, Field(ge=1, le=MAX_TTL)]
ConnectionId = Annotated[str, Field(max_length=64)]


class Request(BaseModel):
    """A request: unknown fields are errors, so that a misspelt limit is not silently no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """An answer: fields that a newer service added are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Authenticate(Request):
    """A first login, forwarded by a proxy; `source` and `connection` as the proxy saw them."""

    user: Annotated[str, Field(max_length=255)]
    password: Annotated[str, Field(max_length=4096)]
    public_key: PublicKey
    ssh_public_key: PublicKey
    ttl: Seconds | None = None
    source: Annotated[str, Field(max_length=64)] = ""
    connection: ConnectionId = ""


class Join(Request):
    """A host's first request, with a token; `source` and `connection` as the proxy saw them."""

    token: Annotated[str, Field(max_length=1024)]
    name: Name
    roles: Annotated[tuple[TokenType, ...], Field(min_length=1, max_length=8)]
    public_key: PublicKey
    ssh_public_key: PublicKey
    names: Names = ()
    source: Annotated[str, Field(max_length=64)] = ""
    connection: ConnectionId = ""


class RouteTo(Request):
    """The one destination that a reissued certificate is narrowed to."""

    kind: Literal["db", "app", "kube"]
    name: Name
    protocol: Annotated[str, Field(max_length=64)] = ""
    user: Annotated[str, Field(max_length=255)] = ""
    database: Annotated[str, Field(max_length=255)] = ""


class Reissue(Request):
    """A narrower certificate for the caller."""

    public_key: PublicKey
    ssh_public_key: PublicKey | None = None
    destination: RouteTo | None = None
    ttl: Seconds | None = None


class Renew(Request):
    """The next certificates of the calling host."""

    public_key: PublicKey
    ssh_public_key: PublicKey
    names: Names | None = None


class DatabaseClient(Request):
    """A database agent asks to act as a database user for the user whose certificate it passes along."""

    public_key: PublicKey
    certificate: CertificatePem
    name: Name
    user: Name
    database: Annotated[str, Field(max_length=255)] = ""
    ttl: Seconds | None = None
    connection: ConnectionId = ""


class SignUser(Request):
    """User certificates without a login."""

    user: Name
    public_key: PublicKey
    ssh_public_key: PublicKey
    ttl: Seconds | None = None


class SignServer(Request):
    """A database server's certificate."""

    hosts: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    public_key: PublicKey
    ttl: Seconds | None = None


class NewUser(Request):
    """A local user; traits fill the templates of roles."""

    name: Name
    roles: Annotated[Names, Field(min_length=1)]
    traits: dict[Name, Names] = {}
    password: Annotated[str, Field(max_length=4096)]


class UserChange(Request):
    """What of a user becomes different: roles if given, and each trait that is named, empty to remove it."""

    roles: Annotated[Names, Field(min_length=1)] | None = None
    traits: dict[Name, Names] = {}


class NewPassword(Request):
    """A reset: the new password ends the lock after failures too."""

    password: Annotated[str, Field(max_length=4096)]


class RecordingOffer(Request):
    """What a node says of a recording: octets, their SHA-256 in hex, and seconds from its first event to its last."""

    size: Annotated[int, Field(ge=1, le=2**40)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    seconds: Annotated[float, Field(ge=0, le=MAX_TTL * 10, allow_inf_nan=False)]


class NewToken(Request):
    """A join token to be made; without `value` the service draws one.

    `nodes` and `databases` are the only names that its hosts may serve, even those that others own.
    """

    types: Annotated[tuple[TokenType, ...], Field(min_length=1, max_length=8)]
    ttl: Seconds | None = None
    value: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    nodes: Names = ()
    databases: Names = ()


class NamedToken(Request):
    """A token to remove, named by its id or its value."""

    token: Annotated[str, Field(min_length=1, max_length=1024)]


class Events(Request):
    """Events of one hand-over, as `audit.events.to_json` writes them."""

    events: Annotated[tuple[dict[str, Any], ...], Field(max_length=256)]


class UserCertificates(Answer):
    """What a login or reissue brings: X.509 as PEM, OpenSSH as one line (empty if not asked for)."""

    certificate: str
    ssh_certificate: str
    cas: TrustedCas
    cluster: str
    user: str
    expires: datetime
    logins: tuple[str, ...]
    roles: tuple[str, ...] = ()


class HostCertificates(Answer):
    """What joining or renewing brings."""

    certificate: str
    ssh_certificate: str
    cas: TrustedCas
    cluster: str
    host_id: str
    expires: datetime


class Certificate(Answer):
    """One X.509 certificate as PEM, when it ends, and the CAs of the cluster."""

    certificate: str
    expires: datetime
    cas: TrustedCas


class Token(Answer):
    """A join token in a listing: its value was shown once, the id is what is left to name it."""

    id: str
    types: tuple[str, ...]
    expires: datetime
    nodes: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()


class MadeToken(Answer):
    """A join token with its value, shown this once."""

    token: str
    id: str
    ca_pin: str
    types: tuple[str, ...]
    expires: datetime
    nodes: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()


class RecordingState(Answer):
    """How many octets of a recording are at the auth service, and whether it keeps them for good."""

    received: int
    kept: bool


class Recording(Answer):
    """One recording: whose session, where, when, seconds long, octets, and their SHA-256."""

    id: str
    user: str
    login: str
    node: str
    host_id: str
    connection: str
    started: datetime
    seconds: float
    size: int
    sha256: str


class RecordingPage(Answer):
    """Recordings, those that began last first; `next` continues the listing, None at its end."""

    recordings: tuple[Recording, ...]
    next: str | None = None


class Status(Answer):
    """The cluster as its auth service sees it, and who is asking."""

    cluster: str
    version: str
    ca_pins: tuple[str, ...]
    authorities: tuple[dict[str, Any], ...]
    caller: str
    roles: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class EventPage:
    """Audit events, newest first; `next` continues the listing, None at its end."""

    events: tuple[Event, ...]
    next: str | None = None
