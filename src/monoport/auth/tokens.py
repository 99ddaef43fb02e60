"""Join tokens: secrets that let a process become a host of the cluster.

Belongs here: making, listing, removing and checking them. What a host gets for one, `join` knows. The value is shown
once and kept only as a hash: whoever reads the storage cannot join with it, and looking one up compares no secret.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from monoport.access.fields import DNS_LABEL
from monoport.auth.names import canonical_name
from monoport.auth.refusals import Exists, Invalid, NotFound, TokenExpired, TokenType, TokenUnknown
from monoport.auth.storage.interface import Item, NotFoundError, Storage

PREFIX = "/tokens/"
DEFAULT_TTL = timedelta(minutes=30)  # as long as setting up a machine by hand takes
MAX_TTL = timedelta(days=366)  # for images that are built once; anything longer will be forgotten
MIN_LENGTH = 8  # characters of a value chosen by hand; drawn ones have 32
REMEMBERED = timedelta(days=7)  # how long an expired token is still told from one that never was
_ID_LENGTH = 12  # hex digits of the hash: enough to name one in a listing, useless for guessing the value


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as stored: what hosts may become with it, and until when.

    `nodes` and `databases` are the only names that they may serve, even those that others own; empty for any free one.
    """

    id: str
    types: tuple[str, ...]
    expires: datetime
    nodes: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()


class Tokens:
    """The join tokens of a cluster.

    Args:
        storage: where their hashes are kept.
        now: the time, aware, UTC.
    """

    def __init__(self, storage: Storage, now: Callable[[], datetime]) -> None:
        self._storage = storage
        self._now = now

    async def add(
        self,
        types: Sequence[str],
        ttl: timedelta | None = None,
        value: str | None = None,
        *,
        nodes: Sequence[str] = (),
        databases: Sequence[str] = (),
    ) -> tuple[str, JoinToken]:
        """Makes a token and returns its value, which nobody will see again; raises Exists or Invalid."""
        length = DEFAULT_TTL if ttl is None else ttl
        if not timedelta(0) < length <= MAX_TTL:
            raise Invalid(f"a token lives for up to {MAX_TTL.days} days")
        secret = secrets.token_hex(16) if value is None else value
        if len(secret) < MIN_LENGTH or not secret.isprintable() or secret != secret.strip():
            raise Invalid(f"a token's value has at least {MIN_LENGTH} printing characters")
        digest = _digest(secret)
        token = JoinToken(
            digest[:_ID_LENGTH],
            tuple(dict.fromkeys(types)),
            self._now() + length,
            _nodes(types, nodes),
            _databases(types, databases),
        )
        if await self._unexpired(digest):
            raise Exists("a token of this value exists")
        await self._storage.put(PREFIX + digest, _write(token), expires=token.expires + REMEMBERED)
        return secret, token

    async def list(self) -> tuple[JoinToken, ...]:
        """Every token that is still good, the first to expire first."""
        tokens = (_read(item) for item in await self._storage.range(PREFIX))
        return tuple(sorted((one for one in tokens if one.expires > self._now()), key=lambda one: one.expires))

    async def remove(self, named: str) -> None:
        """Removes a token named by its id or its value; raises NotFound."""
        digest = _digest(named)
        for item in await self._storage.range(PREFIX):
            if item.key == PREFIX + digest or _read(item).id == named:
                with suppress(NotFoundError):  # somebody else removed it at this moment: gone is gone
                    await self._storage.delete(item.key)
                return
        raise NotFound("no such token")

    async def check(self, value: str, roles: Iterable[str]) -> JoinToken:
        """The token that allows joining with these roles.

        Raises:
            TokenUnknown, TokenExpired, TokenType: each says what to do about it.
        """
        item = await self._storage.get(PREFIX + _digest(value))
        if item is None:
            raise TokenUnknown("this join token is not known: make one with tctl tokens add")
        token = _read(item)
        if token.expires <= self._now():
            raise TokenExpired(f"this join token expired at {token.expires:%Y-%m-%d %H:%M:%S} UTC: make another")
        missing = [role for role in roles if role not in token.types]
        if missing:
            good_for = ", ".join(token.types)
            raise TokenType(f"this join token is for {good_for}, not for {', '.join(missing)}")
        return token

    async def _unexpired(self, digest: str) -> bool:
        item = await self._storage.get(PREFIX + digest)
        return item is not None and _read(item).expires > self._now()


def _digest(value: str) -> str:
    # No salt and no slow hash: drawn values have 128 bits. The digest is the key, so that the look-up's timing tells
    # nothing that a guesser could use: neighbouring values have unrelated digests.
    return hashlib.sha256(b"monoport join token\0" + value.encode()).hexdigest()


def _nodes(types: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    if names and {"node", "proxy"}.isdisjoint(types):  # a proxy's nodename is on its SSH certificate too
        raise Invalid("a token that names nodes must be of the type node")
    return tuple(dict.fromkeys(canonical_name(name) for name in names))


def _databases(types: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    if names and "db" not in types:
        raise Invalid("a token that names databases must be of the type db")
    wrong = [name for name in names if not DNS_LABEL.fullmatch(name)]
    if wrong:
        raise Invalid(f"{wrong[0]!a} is no name of a database: expected a lower-case DNS label")
    return tuple(dict.fromkeys(names))


def _write(token: JoinToken) -> bytes:
    value = {"id": token.id, "types": token.types, "expires": token.expires.isoformat()}
    return json.dumps(value | {"nodes": token.nodes, "databases": token.databases}).encode()


def _read(item: Item) -> JoinToken:
    stored = json.loads(item.value)
    named = tuple(stored.get("nodes", ())), tuple(stored.get("databases", ()))
    return JoinToken(stored["id"], tuple(stored["types"]), datetime.fromisoformat(stored["expires"]), *named)
