"""Changing users who may be signed in: what is checked before, and what becomes of the certificates they have.

Belongs here: adding and changing as operations on several rooms. Who may, `administration` asks; the user as stored is
`users`. A certificate says what its user was at the login. Where a change takes something away, a lock on everything
issued before ends running sessions and asks for a new login; where it only adds, old certificates stay as they are.
"""

from collections.abc import Callable, Mapping

from monoport.access.claims import encode
from monoport.access.fields import MAX_TTL, TRAIT
from monoport.access.resources import (
    Lock,
    LockSpec,
    LockTarget,
    Metadata,
    Role,
    User,
    parse_document,
    to_document,
)
from monoport.access.supposed import restricts, signed_in
from monoport.auth import messages
from monoport.auth.refusals import Invalid
from monoport.auth.service import Parts


class UserChanges:
    """Adds and changes users.

    Args:
        parts: the service's rooms.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def add(self, user: User, password: str | None) -> None:
        """Stores a new user; raises Exists, Invalid, or Failure for rights that no certificate can carry."""
        self._check(user, await self._parts.resources.roles())
        await self._parts.users.add(user, password)

    async def replace(self, user: User) -> bool:
        """Stores a document over a user that is there; see `update`."""
        return await self._change(user.name, lambda _old: user)

    async def update(self, name: str, change: messages.UserChange) -> bool:
        """Changes roles and traits; raises NotFound, Invalid.

        Returns:
            Whether certificates from before are locked.
        """

        def changed(old: User) -> User:
            traits = {**old.spec.traits, **change.traits}
            roles = old.spec.roles if change.roles is None else change.roles
            return as_user({**to_document(old), "spec": {"roles": roles, "traits": _filled(traits)}})

        return await self._change(name, changed)

    async def _change(self, name: str, make: Callable[[User], User]) -> bool:
        roles = await self._parts.resources.roles()
        old = await self._parts.users.get(name)
        new = make(old)
        self._check(new, roles)
        if restricts(old, new, roles):  # before it is stored, so that a crash between leaves no certificate unlocked
            await self._lock(name)
        old, new = await self._parts.users.change(name, make)
        restricted = restricts(old, new, roles)
        if restricted:  # and after, for a login in between
            await self._lock(name)
        return restricted

    def _check(self, user: User, roles: Mapping[str, Role]) -> None:
        missing = [name for name in user.spec.roles if name not in roles]
        if missing:
            raise Invalid(f"no role {', '.join(missing)}: there are {', '.join(sorted(roles))}")
        for trait, values in user.spec.traits.items():
            if not TRAIT.fullmatch(trait):
                raise Invalid(f"{trait!a} is no name of a trait: expected letters, digits and . _ -, a letter first")
            space, dot, rest = trait.partition(".")
            if dot and space in {"internal", "external"}:  # no template could stand for it as it is meant
                raise Invalid(f"trait {trait}: roles write it so, users have it as {rest}")
            for value in values:
                if value == "*":
                    raise Invalid(
                        f"trait {trait}: '*' is no value: only a role allows everything, as in {trait}: ['*']"
                    )
                if "{{" in value:
                    raise Invalid(f"trait {trait}: {value!a} is no value: templates belong into roles")
        encode(signed_in(user, self._parts.cluster, roles, self._parts.now()))  # raises what cannot be certified

    async def _lock(self, name: str) -> None:
        now = self._parts.now()
        before, until = now, now + MAX_TTL
        for lock in await self._parts.resources.locks():
            if lock.name == _name(name) and lock.spec.issued_before is not None:
                before = max(before, lock.spec.issued_before)  # a clock that went back revives nothing
        lock = Lock(
            metadata=Metadata(name=_name(name), expires=until),
            spec=LockSpec(
                target=LockTarget(user=name),
                message="the user was changed: certificates from before are locked",
                expires=until,
                issued_before=before,
            ),
        )
        await self._parts.resources.put(lock, until)


def as_user(document: Mapping[str, object]) -> User:
    """The user that a document describes; raises ResourceError in one line."""
    user = parse_document(document)
    assert isinstance(user, User)
    return user


def _filled(traits: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {trait: values for trait, values in traits.items() if values}


def _name(user: str) -> str:
    return f"changed-{user}"
