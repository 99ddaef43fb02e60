"""Managing what the auth service stores: users, roles, locks, tokens, resources, certificates without a login, events.

Belongs here: operations that rules of roles allow (`allow.rules`), each checked and noted in the audit log. Operations
that belong to a kind of caller are in `service`.
"""

import re
from datetime import timedelta
from typing import assert_never

from monoport.access.decide import Denied, sight, visible
from monoport.access.fields import MAX_TTL
from monoport.access.identity import Identity, Kind
from monoport.access.resources import (
    Database,
    Lock,
    LockSpec,
    LockTarget,
    Metadata,
    Node,
    Resource,
    Role,
    Token,
    TokenSpec,
    User,
)
from monoport.auth import messages
from monoport.auth.permissions import require_current, require_verb
from monoport.auth.refusals import Conflict, Forbidden, Invalid, NotFound
from monoport.auth.service import Service
from monoport.auth.tokens import JoinToken
from monoport.auth.userchanges import UserChanges, as_user

LISTED = frozenset({"node", "db"})  # kinds that users see part of without a rule: what their roles let them reach

# Names of people are also names of files (tsh), of principals (SSH) and parts of listings.
_USER_NAME = re.compile(r"[^\W_][\w.+@-]{0,63}")


class Administration:
    """The managing operations of one cluster's auth service.

    Args:
        service: whose parts these operations manage and whose audit log they write.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parts = service.parts
        self._changes = UserChanges(service.parts)

    # --- resources

    async def list(self, caller: Identity, kind: str) -> tuple[Resource, ...]:
        """The resources of a kind that the caller may see: for nodes and databases, those in reach."""
        try:
            await self._require(caller, kind, "list")
        except Forbidden:
            if kind not in LISTED or caller.kind is not Kind.USER:
                raise
            return await self._in_reach(caller, kind)
        return await self._all(kind)

    async def get(self, caller: Identity, kind: str, name: str) -> Resource:
        """One resource; raises NotFound."""
        restricted, rule = False, ""
        try:
            await self._require(caller, kind, "read")
        except Forbidden:
            if kind not in LISTED or caller.kind is not Kind.USER:
                raise
            require_current(caller, await self._parts.resources.locks(), self._parts.now())
            restricted = True
        for resource in await self._all(kind):
            if name == resource.name or (isinstance(resource, Node) and name == resource.spec.hostname):
                denied = await self._out_of_reach(caller, resource) if restricted else None
                if denied is None:
                    return resource
                rule = denied.rule
        raise NotFound(f"no {kind}/{name}", rule)

    async def create(self, caller: Identity, resource: Resource, force: bool) -> Resource:
        """Stores a document; raises Exists unless `force`, Invalid for what only its owner registers."""
        await self._require(caller, resource.kind, "create")
        if force:
            await self._require(caller, resource.kind, "update")
        await self._store(resource, force)
        await self._note(caller, f"{resource.kind}.create", name=_shown(resource))
        return resource

    async def delete(self, caller: Identity, kind: str, name: str) -> None:
        """Removes a resource; raises NotFound, or Conflict for a role that users still have."""
        await self._require(caller, kind, "delete")
        if not name:
            raise NotFound(f"no {kind} without a name")
        match kind:
            case "user":
                await self._remove_user(name)
            case "token":
                await self._parts.tokens.remove(name)
            case "role":
                await self._require_unused(name)
                await self._parts.resources.delete(kind, name)
            case "lock":
                await self._parts.resources.delete(kind, name)
            case "db":
                await self._remove_database(name)
            case "node":
                await self._remove_node(name)
            case _:
                raise NotFound(f"no {kind}/{name}")
        await self._note(caller, f"{kind}.delete", name="" if kind == "token" else name)

    async def databases_allow(self, caller: Identity, name: str) -> None:
        """Lets agents that run register a database again that was removed; raises NotFound if it was not."""
        await self._require(caller, "db", "update")
        if not await self._parts.removals.allow(name):
            raise NotFound(f'no database "{name}" was removed')
        await self._note(caller, "db.allow", name=name)

    async def _remove_database(self, name: str) -> None:
        registered = any(one.name == name for one in await self._parts.resources.list("db"))
        if registered or await self._parts.ownership.owned("db", name):
            await self._parts.removals.mark(name)  # first: no agent may claim the name anew in between
        freed = await self._parts.ownership.free("db", name)
        try:
            await self._parts.resources.delete("db", name)
        except NotFound:
            if not freed:
                raise

    async def _remove_node(self, name: str) -> None:
        """Removes hosts by nodename, or one of any kind by id, with all that they registered, and frees the name."""
        hosts, found = await self._parts.ownership.remove_node(name)
        for host_id in dict.fromkeys((*(host.id for host in hosts), name)):
            found = await self._parts.resources.delete_of_host(host_id) or found
        if not found and not hosts:
            raise NotFound(f"no node/{name}")

    async def _store(self, resource: Resource, force: bool) -> None:
        match resource:
            case Role() | Lock():
                if force:
                    await self._parts.resources.put(resource, resource.metadata.expires)
                else:
                    await self._parts.resources.create(resource, resource.metadata.expires)
            case User():
                _check_user_name(resource.name)
                if force and await self._exists(resource.name):
                    await self._changes.replace(resource)
                else:
                    await self._changes.add(resource, None)
                await self._readmit(resource.name)
            case Token():
                expires = resource.metadata.expires
                ttl = None if expires is None else expires - self._parts.now()
                spec = resource.spec
                await self._parts.tokens.add(spec.types, ttl, resource.name, nodes=spec.nodes, databases=spec.databases)
            case Node() | Database():
                raise Invalid(f"a {resource.kind} is registered by its agent, not by hand")
            case _:
                assert_never(resource)

    async def _all(self, kind: str) -> tuple[Resource, ...]:
        match kind:
            case "user":
                return await self._parts.users.list()
            case "token":
                return tuple(_document(token) for token in await self._parts.tokens.list())
            case "role" | "lock" | "node" | "db":
                return await self._parts.resources.list(kind)
            case _:
                raise NotFound(f"no resources of kind {kind}")

    async def _out_of_reach(self, caller: Identity, resource: Resource) -> Denied | None:
        assert isinstance(resource, Node | Database), "only these are asked for without a rule"
        roles, locks = await self._parts.resources.roles(), await self._parts.resources.locks()
        seen = sight(caller, resource, roles, locks, self._parts.now())
        return seen if isinstance(seen, Denied) else None

    async def _in_reach(self, caller: Identity, kind: str) -> tuple[Resource, ...]:
        locks, now = await self._parts.resources.locks(), self._parts.now()
        require_current(caller, locks, now)
        roles = await self._parts.resources.roles()
        return tuple(
            one
            for one in await self._parts.resources.list(kind)
            if isinstance(one, Node | Database) and visible(caller, one, roles, locks, now)
        )

    # --- users

    async def users_add(self, caller: Identity, request: messages.NewUser) -> User:
        """Adds a user with a password."""
        await self._require(caller, "user", "create")
        _check_user_name(request.name)
        spec = {"roles": request.roles, "traits": dict(request.traits)}
        user = as_user({"kind": "user", "metadata": {"name": request.name}, "spec": spec})
        await self._changes.add(user, request.password)
        await self._readmit(user.name)
        await self._note(caller, "user.create", name=user.name, roles=list(user.spec.roles))
        return user

    async def users_update(self, caller: Identity, name: str, change: messages.UserChange) -> bool:
        """Changes a user's roles and traits; whether certificates from before are locked."""
        await self._require(caller, "user", "update")
        locked = await self._changes.update(name, change)
        user = await self._parts.users.get(name)
        traits = {trait: list(values) for trait, values in user.spec.traits.items()}
        await self._note(
            caller, "user.update", name=name, roles=list(user.spec.roles), traits=traits, signed_out=locked
        )
        return locked

    async def users_reset(self, caller: Identity, name: str, request: messages.NewPassword) -> None:
        """Sets a user's password and lifts the lock after failures."""
        await self._require(caller, "user", "update")
        await self._parts.users.reset(name, request.password)
        await self._note(caller, "user.reset", name=name)

    async def _remove_user(self, name: str) -> None:
        await self._parts.users.get(name)
        # First the lock, then the account: whatever happens between, nobody is left with a certificate and no lock.
        until = self._parts.now() + MAX_TTL  # today's roles need not be those that certificates were issued by
        lock = Lock(
            metadata=Metadata(name=_removal(name), expires=until),
            spec=LockSpec(target=LockTarget(user=name), message="the user was removed", expires=until),
        )
        await self._parts.resources.put(lock, until)
        await self._parts.users.remove(name)

    async def _readmit(self, name: str) -> None:
        """Narrows the lock that removing a user of this name had set to what was issued before now.

        The administrator wants the name back, perhaps for somebody else: certificates of the removed user stay locked.
        """
        now = self._parts.now()
        for lock in await self._parts.resources.locks():
            until = lock.spec.expires
            if lock.name == _removal(name) and lock.spec.issued_before is None and until is not None:
                removed = until - MAX_TTL  # if the clock went back since, the later of the two
                spec = lock.spec.model_copy(update={"issued_before": max(now, removed)})
                await self._parts.resources.put(lock.model_copy(update={"spec": spec}), until)

    async def _exists(self, name: str) -> bool:
        try:
            await self._parts.users.get(name)
        except NotFound:
            return False
        return True

    async def _require_unused(self, role: str) -> None:
        holders = [user.name for user in await self._parts.users.list() if role in user.spec.roles]
        if holders:
            raise Conflict(f'role "{role}" is held by {", ".join(holders[:5])}{" ..." if len(holders) > 5 else ""}')

    # --- tokens

    async def tokens_list(self, caller: Identity) -> tuple[messages.Token, ...]:
        """Join tokens that are still good, without their values."""
        await self._require(caller, "token", "list")
        tokens = await self._parts.tokens.list()
        return tuple(messages.Token.model_validate(one, from_attributes=True) for one in tokens)

    async def tokens_add(self, caller: Identity, request: messages.NewToken) -> messages.MadeToken:
        """Makes a join token; the answer alone has its value."""
        await self._require(caller, "token", "create")
        ttl = None if request.ttl is None else timedelta(seconds=request.ttl)
        value, token = await self._parts.tokens.add(
            request.types, ttl, request.value, nodes=request.nodes, databases=request.databases
        )
        names = {"nodes": list(token.nodes), "databases": list(token.databases)}
        await self._note(caller, "token.create", id=token.id, types=list(token.types), **names)
        return messages.MadeToken(
            token=value,
            id=token.id,
            ca_pin=self._parts.issuer.pins()[0],
            types=token.types,
            expires=token.expires,
            nodes=token.nodes,
            databases=token.databases,
        )

    async def tokens_remove(self, caller: Identity, request: messages.NamedToken) -> None:
        """Removes a token by its id or its value."""
        await self._require(caller, "token", "delete")
        await self._parts.tokens.remove(request.token)
        await self._note(caller, "token.delete")

    # --- certificates and events

    async def sign_user(self, caller: Identity, request: messages.SignUser) -> messages.UserCertificates:
        """User certificates without a login; roles set the longest they live."""
        await self._require(caller, "certificate", "create")
        user = await self._parts.users.get(request.user)
        known = await self._parts.resources.roles()
        roles = {name: known.get(name) for name in user.spec.roles}
        ttl = None if request.ttl is None else timedelta(seconds=request.ttl)
        identity = self._parts.issuer.identity(user, roles, ttl)
        certificates = self._parts.issuer.user(identity, roles, request.public_key, request.ssh_public_key)
        await self._note(caller, "certificate.user", name=user.name, expires=identity.expires.isoformat())
        return certificates

    async def sign_database_server(self, caller: Identity, request: messages.SignServer) -> messages.Certificate:
        """A database server's certificate."""
        await self._require(caller, "certificate", "create")
        ttl = None if request.ttl is None else timedelta(seconds=request.ttl)
        certificate = self._parts.issuer.database_server(request.hosts, request.public_key, ttl)
        hosts, expires = list(request.hosts), certificate.expires.isoformat()
        await self._note(caller, "certificate.database_server", hosts=hosts, expires=expires)
        return certificate

    async def events(
        self, caller: Identity, limit: int, before: str | None, event_type: str | None
    ) -> messages.EventPage:
        """Audit events, newest first."""
        await self._require(caller, "event", "list")
        return await self._parts.events.page(limit, before, event_type)

    # --- how

    async def _require(self, caller: Identity, kind: str, verb: str) -> None:
        roles, locks = await self._parts.resources.roles(), await self._parts.resources.locks()
        require_verb(caller, kind, verb, roles, locks, self._parts.now())
        if verb not in {"read", "list"}:
            self._service.require_log()

    async def _note(self, caller: Identity, event_type: str, **fields: object) -> None:
        await self._service.record(event_type, by=str(caller), **fields)


def _check_user_name(name: str) -> None:
    if _USER_NAME.fullmatch(name) is None:
        raise Invalid(f"{name!a} is no user name: expected letters, digits and . _ + @ -, the first a letter or digit")


def _removal(user: str) -> str:
    return f"removed-{user}"


def _document(token: JoinToken) -> Token:
    return Token(
        metadata=Metadata(name=token.id, expires=token.expires),
        spec=TokenSpec.model_validate(
            {"types": list(token.types), "nodes": list(token.nodes), "databases": list(token.databases)}
        ),
    )


def _shown(resource: Resource) -> str:
    return "" if isinstance(resource, Token) else resource.name  # a token's name is the secret
