"""How a host becomes one of the cluster, and stays one.

Belongs here: what a token is exchanged for, which names a host gets, renewal. Checking tokens is `tokens`,
signing is `issue`.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from monoport.access.identity import Identity
from monoport.auth.issue import Issuer
from monoport.auth.messages import HostCertificates, Join, Renew
from monoport.auth.names import check_agent_name, principals, proxy_names
from monoport.auth.refusals import Forbidden, TokenType
from monoport.auth.storage.interface import Storage
from monoport.auth.tokens import Tokens

PREFIX = "/hosts/"
SERVED = frozenset({"node", "db", "app", "kube", "proxy"})  # a second auth service and leaves do not join this way yet


@dataclass(frozen=True, slots=True)
class Host:
    """A host as remembered: what it may renew, and which names it keeps from others."""

    id: str
    name: str
    roles: tuple[str, ...]
    names: tuple[str, ...]


class Hosts:
    """The hosts of a cluster.

    Args:
        storage: remembers them. tokens: lets them in. issuer: signs.
        cluster: whose they become. now: the time, aware, UTC.
    """

    def __init__(
        self, storage: Storage, tokens: Tokens, issuer: Issuer, cluster: str, now: Callable[[], datetime]
    ) -> None:
        self._storage = storage
        self._tokens = tokens
        self._issuer = issuer
        self._cluster = cluster
        self._now = now

    async def join(self, request: Join) -> HostCertificates:
        """A new host's certificates; raises TokenUnknown, TokenExpired, TokenType or Invalid."""
        await self._tokens.check(request.token, request.roles)
        unserved = [role for role in request.roles if role not in SERVED]
        if unserved:
            raise TokenType(f"joining as {', '.join(unserved)} is not served yet")
        return await self.admit(
            name=request.name,
            roles=request.roles,
            names=request.names,
            public_key=request.public_key,
            ssh_public_key=request.ssh_public_key,
        )

    async def admit(
        self,
        *,
        name: str,
        roles: Sequence[str],
        names: Sequence[str],
        public_key: str,
        ssh_public_key: str,
        host_id: str | None = None,
    ) -> HostCertificates:
        """Certificates for a host that needs no token (any more): it joined just now, or is part of the auth daemon."""
        found = host_id or str(uuid.uuid4())
        host = await self._named(Host(found, name, tuple(dict.fromkeys(roles)), tuple(names)))
        certificates = self._sign(host, public_key, ssh_public_key)
        await self._remember(host)
        return certificates

    async def renew(self, caller: Identity, request: Renew) -> HostCertificates:
        """The caller's next certificates: the same roles, and the same names unless it is a proxy."""
        host = await self._get(caller)
        if request.names is not None and set(request.names) != set(host.names):
            if "proxy" not in caller.roles:
                raise Forbidden("only proxies choose the names on their certificates", f"{caller} asked for others")
            host = await self._named(Host(host.id, host.name, host.roles, request.names))
            await self._remember(host)
        return self._sign(host, request.public_key, request.ssh_public_key)

    async def _named(self, host: Host) -> Host:
        """Checks a host's names; raises Invalid."""
        if "proxy" in host.roles:
            names = proxy_names(self._cluster, host.names)
            return Host(host.id, host.name, host.roles, names)
        if host.names and set(host.names) - {host.name}:
            raise Forbidden("only proxies choose the names on their certificates", f"{host.name} asked for others")
        taken = [name for other in await self._list() if "proxy" in other.roles for name in other.names]
        check_agent_name(host.name, self._cluster, taken)
        return Host(host.id, host.name, host.roles, ())

    def _sign(self, host: Host, public_key: str, ssh_public_key: str) -> HostCertificates:
        found_by = principals(host.id, host.name, self._cluster)
        return self._issuer.host(
            host.id,
            roles=host.roles,
            principals=found_by,
            names=host.names,
            public_key=public_key,
            ssh_public_key=ssh_public_key,
        )

    async def _get(self, caller: Identity) -> Host:
        item = await self._storage.get(PREFIX + caller.name)
        if item is None:
            raise Forbidden(f"the host {caller.name} was removed: it has to join again", "no such host")
        host = _read(item.value)
        if set(host.roles) != set(caller.roles):
            raise Forbidden("the roles of a host do not change by renewal", f"{caller} with {', '.join(caller.roles)}")
        return host

    async def _list(self) -> list[Host]:
        return [_read(item.value) for item in await self._storage.range(PREFIX)]

    async def _remember(self, host: Host) -> None:
        value = {"id": host.id, "name": host.name, "roles": host.roles, "names": host.names}
        value["seen"] = self._now().isoformat()
        await self._storage.put(PREFIX + host.id, json.dumps(value).encode())


def _read(value: bytes) -> Host:
    stored = json.loads(value)
    return Host(stored["id"], stored["name"], tuple(stored["roles"]), tuple(stored["names"]))
