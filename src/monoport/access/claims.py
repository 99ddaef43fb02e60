"""The value that says who is calling, and its one encoding.

Belongs here: `Identity`, its bounds, and the JSON that X.509 and OpenSSH certificates carry.
Does not: reading certificates (identity.py, which also passes these names on), deciding (decide.py).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Never

from monoport.errors import Failure

MAX_ENCODED: Final = 16 * 1024  # of JSON; a certificate must still fit a TLS record and an SSH packet
MAX_NAME: Final = 255  # characters; longer than any DNS name or login, short enough for a log line
MAX_VALUES: Final = 256  # roles, principals, traits and values of one trait; also OpenSSH's limit of principals
MAX_GENERATION: Final = 2**53  # integers above are not exact in every JSON reader
ENCODING_VERSION: Final = 1  # a reader refuses others: half-understood rights are worse than none

SYSTEM_ROLES: Final = frozenset({"auth", "proxy", "node", "db", "app", "kube", "admin"})
USAGES: Final = frozenset({"ssh", "db", "app", "kube"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LATEST: Final = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND  # datetime ends soon after
DESTINATIONS: Final = frozenset({"db", "app", "kube"})


class IdentityError(Failure):
    """No identity: what was presented is malformed, expired, or not vouched for by the right CA."""


class Kind(StrEnum):
    """Which CA vouches: people and robots (USER), or the cluster's own processes (HOST)."""

    USER = "user"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Destination:
    """The one resource that a narrowed certificate is for; empty strings leave that part open."""

    kind: str
    name: str
    protocol: str = ""
    user: str = ""
    database: str = ""

    def __post_init__(self) -> None:
        if self.kind not in DESTINATIONS:
            _fail("destination.kind", f"expected one of {', '.join(sorted(DESTINATIONS))}")
        check_name("destination.name", self.name)
        for what in ("protocol", "user", "database"):
            if value := getattr(self, what):
                check_name(f"destination.{what}", value)


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller, always `user@cluster`.

    Args:
        kind: which CA vouched.
        name: user name, or host id.
        cluster: the cluster whose CA signed.
        roles: role names of a user; system roles (`SYSTEM_ROLES`) of a host.
        traits: values for role templates, such as logins or db_users.
        principals: logins of a user, names of a host; matched exactly.
        expires: UTC instant after which nothing is allowed.
        destination: the only resource allowed, if the certificate was narrowed to one.
        usage: kinds of use allowed (`USAGES`); empty means all.
        login_ip: address that the login came from, or empty.
        generation: counts renewals of a robot's certificate.
        issued: UTC instant of the login, or of a host's joining or renewal; a narrower certificate keeps its login's.
            None for one that does not say.

    Raises:
        IdentityError: if any part is malformed or too long.
    """

    kind: Kind
    name: str
    cluster: str
    roles: tuple[str, ...] = ()
    traits: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    principals: tuple[str, ...] = ()
    expires: datetime = field(kw_only=True)
    destination: Destination | None = None
    usage: tuple[str, ...] = ()
    login_ip: str = ""
    generation: int = 0
    issued: datetime | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("cluster", self.cluster)
        if "@" in self.cluster:
            _fail("cluster", "must not contain @")
        _check_names("roles", self.roles)
        _check_principals(self.principals)
        _check_traits(self.traits)
        if self.kind is Kind.HOST and not SYSTEM_ROLES.issuperset(self.roles):
            _fail("roles", f"a host's roles are {', '.join(sorted(SYSTEM_ROLES))}")
        if not USAGES.issuperset(self.usage):
            _fail("usage", f"expected some of {', '.join(sorted(USAGES))}")
        if self.expires.utcoffset() != timedelta(0):
            _fail("expires", "must be in UTC")
        if self.issued is not None and (self.issued.utcoffset() != timedelta(0) or self.issued <= _EPOCH):
            _fail("issued", "must be in UTC, after 1970 began")
        if not 0 <= self.generation <= MAX_GENERATION:
            _fail("generation", f"must be between 0 and {MAX_GENERATION}")
        if self.login_ip:
            _check_address(self.login_ip)

    def __str__(self) -> str:
        return f"{self.name}@{self.cluster}"


def encode(identity: Identity) -> bytes:
    """Return the JSON that a certificate carries; `expires` is left to the certificate's own validity.

    Raises:
        IdentityError: if it is longer than `MAX_ENCODED` bytes.
    """
    document: dict[str, object] = {
        "v": ENCODING_VERSION,
        "kind": identity.kind.value,
        "name": identity.name,
        "cluster": identity.cluster,
    }
    optional: dict[str, object] = {
        "roles": identity.roles,
        "traits": dict(identity.traits),
        "principals": identity.principals,
        "usage": identity.usage,
        "login_ip": identity.login_ip,
        "generation": identity.generation,
        # Exact, unlike the beginning of validity, which is dated back and in whole seconds: locks compare it.
        "issued": 0 if identity.issued is None else (identity.issued - _EPOCH) // _MICROSECOND,
    }
    document |= {key: value for key, value in optional.items() if value}
    if identity.destination is not None:
        parts = ("kind", "name", "protocol", "user", "database")
        document["destination"] = {part: value for part in parts if (value := getattr(identity.destination, part))}
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    if len(data) > MAX_ENCODED:
        raise IdentityError(f"identity of {identity} takes {len(data)} bytes, limit {MAX_ENCODED}")
    return data


def decode(data: bytes, expires: datetime) -> Identity:
    """Return the identity that `encode` wrote.

    Args:
        data: JSON, at most `MAX_ENCODED` bytes.
        expires: end of validity of the certificate that carried it, UTC.

    Raises:
        IdentityError: for anything that `encode` would not have written.
    """
    if len(data) > MAX_ENCODED:
        raise IdentityError(f"identity takes {len(data)} bytes, limit {MAX_ENCODED}")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise IdentityError("identity is not valid JSON") from error
    fields = _object("identity", document, _FIELDS)
    if type(fields.get("v")) is not int or fields["v"] != ENCODING_VERSION:
        raise IdentityError(f"identity has an unknown version, expected {ENCODING_VERSION}")
    kind = _string("kind", fields.get("kind"))
    if kind not in (Kind.USER, Kind.HOST):
        _fail("kind", "expected user or host")
    generation = fields.get("generation", 0)
    if type(generation) is not int:
        _fail("generation", "expected an integer")
    return Identity(
        kind=Kind(kind),
        name=_string("name", fields.get("name")),
        cluster=_string("cluster", fields.get("cluster")),
        roles=_strings("roles", fields.get("roles", [])),
        traits=_traits(fields.get("traits", {})),
        principals=_strings("principals", fields.get("principals", [])),
        expires=expires,
        destination=_destination(fields["destination"]) if "destination" in fields else None,
        usage=_strings("usage", fields.get("usage", [])),
        login_ip=_string("login_ip", fields.get("login_ip", "")),
        generation=generation,
        issued=_issued(fields["issued"]) if "issued" in fields else None,
    )


_DESTINATION_FIELDS: Final = frozenset({"kind", "name", "protocol", "user", "database"})
_FIELDS: Final = frozenset(
    {"v", "kind", "name", "cluster", "roles", "traits", "principals"}
    | {"destination", "usage", "login_ip", "generation", "issued"}
)


def check_name(what: str, value: str) -> None:
    """Refuse a name that is empty, over-long, padded, or holds anything that does not print (controls, bidi marks).

    Raises:
        IdentityError: naming `what`.
    """
    if not value:
        _fail(what, "must not be empty")
    if len(value) > MAX_NAME:
        _fail(what, f"has {len(value)} characters, limit {MAX_NAME}")
    if not value.isprintable():
        _fail(what, "holds characters that do not print")
    if value[0] == " " or value[-1] == " ":
        _fail(what, "begins or ends with a space")


def _check_names(what: str, values: Sequence[str]) -> None:
    if len(values) > MAX_VALUES:
        _fail(what, f"has {len(values)} entries, limit {MAX_VALUES}")
    for value in values:
        check_name(what, value)


def _check_principals(principals: Sequence[str]) -> None:
    _check_names("principals", principals)
    for principal in principals:
        # OpenSSH writes and matches lists of principals with commas; '*' is a pattern to some readers
        if "," in principal or "*" in principal or " " in principal:
            _fail("principals", "must not contain commas, spaces or *")


def _check_traits(traits: Mapping[str, tuple[str, ...]]) -> None:
    _check_names("traits", tuple(traits))
    for trait, values in traits.items():
        _check_names(f"traits.{trait}", values)


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise IdentityError("identity: login_ip: expected an IP address") from error


def _fail(what: str, why: str) -> Never:
    raise IdentityError(f"identity: {what}: {why}")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _object(what: str, value: object, known: frozenset[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        _fail(what, "expected an object")
    if not known.issuperset(value):
        _fail(what, "holds unknown fields")
    return value


def _string(what: str, value: object) -> str:
    if not isinstance(value, str):
        _fail(what, "expected a string")
    return value


def _strings(what: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        _fail(what, "expected a list of strings")
    return tuple(_string(what, item) for item in value)


def _traits(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        _fail("traits", "expected an object")
    return {trait: _strings("traits", values) for trait, values in value.items()}


def _issued(value: object) -> datetime:
    if type(value) is not int or not 0 < value < _LATEST:
        _fail("issued", "expected microseconds since 1970")
    return _EPOCH + value * _MICROSECOND


def _destination(value: object) -> Destination:
    fields = _object("destination", value, _DESTINATION_FIELDS)
    parts = {part: _string(f"destination.{part}", fields.get(part, "")) for part in sorted(_DESTINATION_FIELDS)}
    return Destination(**parts)
