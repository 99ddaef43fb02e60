"""Local users: what is stored of them, and proving to be one with a password.

Belongs here: adding, listing, removing, resetting, authenticating. Certificates, which come after, `issue` makes;
hashing and the lock after failures are in `passwords`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from monoport.access.resources import Resource, User, parse_document, to_document
from monoport.auth.passwords import Passwords
from monoport.auth.refusals import Conflict, Exists, NotFound
from monoport.auth.storage.interface import (
    AlreadyExistsError,
    ConflictError,
    Item,
    NotFoundError,
    Storage,
    check_key,
)

PREFIX = "/users/"
_TRIES = 8  # compare-and-swap against other administrators; a ninth collision is not an accident


@dataclass(frozen=True, slots=True)
class Account:
    """A user as stored: the public document and the password's PHC string, if one was set."""

    user: User
    password: str | None


class Users:
    """The local users of a cluster.

    Args:
        storage: where they are kept, one item each, so that a user and the password are never apart.
        passwords: hashing and counting.
    """

    def __init__(self, storage: Storage, passwords: Passwords) -> None:
        self._storage = storage
        self._passwords = passwords

    async def get(self, name: str) -> User:
        """One user; raises NotFound."""
        item = await self._item(name)
        if item is None:
            raise NotFound(f'no user "{name}"')
        return _read(item).user

    async def list(self) -> tuple[User, ...]:
        """Every user, by name."""
        return tuple(_read(item).user for item in await self._storage.range(PREFIX))

    async def add(self, user: User, password: str | None) -> None:
        """Stores a new user; raises Exists, or Invalid for a password that will not do."""
        if await self._item(user.name) is not None:  # before the hashing, which is expensive; create decides
            raise Exists(f'user "{user.name}" exists')
        hashed = None if password is None else await self._passwords.hash(password)
        try:
            await self._storage.create(PREFIX + user.name, _write(Account(user, hashed)))
        except AlreadyExistsError:
            raise Exists(f'user "{user.name}" exists') from None

    async def change(self, name: str, make: Callable[[User], User]) -> tuple[User, User]:
        """Stores what `make` makes of a user's document, keeping the password; returns both. Raises NotFound.

        Args:
            make: may be called again, if somebody else changes the user at the same time.
        """
        for _ in range(_TRIES):
            item = await self._item(name)
            if item is None:
                raise NotFound(f'no user "{name}"')
            account = _read(item)
            user = make(account.user)
            try:
                await self._storage.compare_and_swap(
                    PREFIX + name, _write(Account(user, account.password)), item.revision
                )
            except ConflictError:
                continue
            return account.user, user
        raise Conflict(f'user "{name}" is being changed by somebody else: try again')

    async def remove(self, name: str) -> None:
        """Removes a user; raises NotFound."""
        await self.get(name)
        try:
            await self._storage.delete(PREFIX + name)
        except NotFoundError:
            raise NotFound(f'no user "{name}"') from None
        await self._passwords.forgive(name)

    async def reset(self, name: str, password: str) -> None:
        """Sets a new password and lifts the lock after failures; raises NotFound."""
        await self.get(name)
        await self._store_password(name, await self._passwords.hash(password))
        await self._passwords.forgive(name)

    async def authenticate(self, name: str, password: str) -> User:
        """The user whose password it is.

        Raises:
            WrongPassword: for unknown users too, after the same work. LoginLocked, TooBusy: see `passwords`.
        """
        item = await self._item(name)
        account = None if item is None else _read(item)
        stored = None if account is None else account.password
        stronger = await self._passwords.check(name, password, stored)
        if stronger is not None:
            await self._store_password(name, stronger)
        assert account is not None, "a password matched without an account"
        return account.user

    async def _store_password(self, name: str, hashed: str) -> None:
        for _ in range(_TRIES):
            item = await self._item(name)
            if item is None:
                raise NotFound(f'no user "{name}"')
            account = Account(_read(item).user, hashed)
            try:
                await self._storage.compare_and_swap(PREFIX + name, _write(account), item.revision)
            except ConflictError:
                continue
            return
        raise Conflict(f'user "{name}" is being changed by somebody else: try again')

    async def _item(self, name: str) -> Item | None:
        """What is stored under a name; a text that cannot be a name costs what an unknown one costs."""
        try:
            key = check_key(PREFIX + name)
        except ValueError:
            return None
        return None if "/" in name else await self._storage.get(key)


def _write(account: Account) -> bytes:
    return json.dumps({"document": to_document(account.user), "password": account.password}).encode()


def _read(item: Item) -> Account:
    stored = json.loads(item.value)
    user: Resource = parse_document(stored["document"])
    assert isinstance(user, User), f"{item.key} holds a {user.kind}"
    return Account(user, stored["password"])
