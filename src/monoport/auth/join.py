"""How a host becomes one of the cluster, and stays one.

Belongs here: what a token is exchanged for, which names a host gets, renewal. Checking tokens is `tokens`,
whose names are whose is `ownership`, signing is `issue`.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace

from monoport.access.identity import Identity
from monoport.auth.hosts import LOCAL, Host, HostRecords
from monoport.auth.issue import Issuer
from monoport.auth.messages import HostCertificates, Join, Renew
from monoport.auth.names import canonical_name, check_agent_name, nodenames, principals, proxy_names
from monoport.auth.ownership import Ownership
from monoport.auth.refusals import Forbidden, Invalid, Refusal, TokenType
from monoport.auth.tokens import Tokens

SERVED = frozenset({"node", "db", "app", "kube", "proxy"})  # a second auth service and leaves do not join this way yet


class Hosts:
    """The hosts of a cluster.

    Args:
        records: remembers them. tokens: lets them in. ownership: keeps their names. issuer: signs.
        cluster: whose they become.
    """

    def __init__(
        self, records: HostRecords, tokens: Tokens, ownership: Ownership, issuer: Issuer, cluster: str
    ) -> None:
        self._records = records
        self._tokens = tokens
        self._ownership = ownership
        self._issuer = issuer
        self._cluster = cluster

    async def join(self, request: Join) -> HostCertificates:
        """A new host's certificates; raises TokenUnknown, TokenExpired, TokenType, NameOwned or Invalid."""
        token = await self._tokens.check(request.token, request.roles)
        unserved = [role for role in request.roles if role not in SERVED]
        if unserved:
            raise TokenType(f"joining as {', '.join(unserved)} is not served yet")
        host = Host(
            str(uuid.uuid4()),
            request.name,
            tuple(dict.fromkeys(request.roles)),
            request.names,
            origin=f"token/{token.id}",
            nodes=token.nodes,
            databases=token.databases,
        )
        return await self._enter(host, request.public_key, request.ssh_public_key)

    async def admit(
        self, *, name: str, roles: Sequence[str], names: Sequence[str], public_key: str, ssh_public_key: str
    ) -> HostCertificates:
        """Certificates for a host of the auth daemon itself, which needs no token and may have any name."""
        host = Host(str(uuid.uuid4()), name, tuple(dict.fromkeys(roles)), tuple(names), origin=LOCAL)
        return await self._enter(host, public_key, ssh_public_key)

    async def _enter(self, asking: Host, public_key: str, ssh_public_key: str) -> HostCertificates:
        host = await self._named(asking)
        certificates = self._sign(host, public_key, ssh_public_key)
        # The record first: a name whose owner has none is free for others, and this one must not be for a moment.
        await self._records.remember(host)
        try:
            await self._claim(host, "join")
        except Refusal:
            await self._records.forget(host)
            raise
        return certificates

    async def _claim(self, host: Host, operation: str) -> None:
        """Makes a node's names its own; a proxy's must only not be others' nodes'. Raises NameOwned, Invalid."""
        if {"node", "proxy"}.isdisjoint(host.roles):
            return  # nobody finds it by name
        names = nodenames(host.name, self._cluster.lower())
        ids = {one.id for one in await self._records.list()}
        if not ids.isdisjoint({*names, *host.names}):
            raise Invalid(f'"{host.name}" is called like the id of another host: set another teleport.nodename')
        if "proxy" in host.roles and host.origin != LOCAL:
            await self._ownership.require_free(host, "node", (*names, *host.names), operation)
        if "node" in host.roles:
            await self._ownership.claim(host, "node", names, operation, anew=True)

    async def renew(self, caller: Identity, request: Renew) -> HostCertificates:
        """The caller's next certificates: the same roles, and the same names unless it is a proxy."""
        host = await self._get(caller)
        if request.names is not None and set(request.names) != set(host.names):
            if "proxy" not in caller.roles:
                raise Forbidden("only proxies choose the names on their certificates", f"{caller} asked for others")
            host = await self._named(replace(host, names=request.names))
        await self._claim(host, "renew")
        certificates = self._sign(host, request.public_key, request.ssh_public_key)
        await self._records.remember(host)
        return certificates

    async def _named(self, host: Host) -> Host:
        """Checks a host's names; raises Invalid."""
        if "proxy" in host.roles:
            names = proxy_names(self._cluster, host.names)
            canonical_name(host.name)
            return replace(host, names=names)
        if host.names and set(host.names) - {host.name}:
            raise Forbidden("only proxies choose the names on their certificates", f"{host.name} asked for others")
        taken = [name for other in await self._records.list() if "proxy" in other.roles for name in other.names]
        check_agent_name(host.name, self._cluster, taken)
        return replace(host, names=())

    def _sign(self, host: Host, public_key: str, ssh_public_key: str) -> HostCertificates:
        # Only nodes and proxies are found by name: another agent's certificate must not be good for a node's.
        named = not {"node", "proxy"}.isdisjoint(host.roles)
        found_by = principals(host.id, host.name, self._cluster) if named else (host.id,)
        return self._issuer.host(
            host.id,
            roles=host.roles,
            principals=found_by,
            names=host.names,
            public_key=public_key,
            ssh_public_key=ssh_public_key,
        )

    async def _get(self, caller: Identity) -> Host:
        host = await self._records.get(caller.name)
        if set(host.roles) != set(caller.roles):
            raise Forbidden("the roles of a host do not change by renewal", f"{caller} with {', '.join(caller.roles)}")
        return host
