"""Which agents a proxy lets in: they prove who they are, and may ask to be dialled, for nothing else.

Belongs here: authenticating an agent's SSH connection and refusing its requests. Not here: the registry of those that
are in, dialling (`tunnel.proxy`).
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol

import asyncssh
import structlog

from monoport.access.identity import ClusterCas, Identity, IdentityError, Kind, from_ssh
from monoport.access.locks import lock_for
from monoport.access.resources import Database, Lock, Node
from monoport.tunnel import link

LISTENER = "/monoport/dial"  # the one listener that an agent asks for; a name, not a path on any disk
AGENTS = frozenset({"node", "db", "app", "kube"})


class Inventory(Protocol):
    """What the tunnels must know of the cluster; `auth.cache.Cache` knows it."""

    @property
    def cas(self) -> ClusterCas: ...
    @property
    def locks(self) -> Iterable[Lock]: ...
    def nodes(self) -> Sequence[Node]: ...
    def databases(self) -> Sequence[Database]: ...


class AgentLink(link.ServerLink):
    """An agent's connection: it authenticates as a host, by its certificate of the host CA (RFC 4252 section 9)."""

    async def validate_host_based_auth(  # noqa: PLR0917  (asyncssh's own signature)
        self, username: str, key_data: bytes, client_host: str, client_username: str, msg: bytes, signature: bytes
    ) -> bool:
        self.attempt()
        owner = self.get_owner()
        if not isinstance(owner, AgentServer) or not owner.vouched(key_data, client_host):
            return False
        return await super().validate_host_based_auth(username, key_data, client_host, client_username, msg, signature)


class _Dialled(asyncssh.SSHListener):
    """Stands for the listener that the agent asked for: nothing listens, the proxy opens channels by itself."""

    def close(self) -> None:
        super().close()

    async def wait_closed(self) -> None:
        await super().wait_closed()


class AgentServer(asyncssh.SSHServer):
    """Answers for one agent's connection: its host certificate and one listener, everything else is refused."""

    def __init__(
        self, inventory: Inventory, now: Callable[[], datetime], log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._inventory, self._now, self._log = inventory, now, log
        self.identity: Identity | None = None
        self.ready = asyncio.Event()

    def vouched(self, certificate: bytes, name: str) -> bool:
        """Whether the host CA vouches for an agent of that name; the caller checks the signature."""
        self.identity = None
        try:
            identity = from_ssh(certificate, self._inventory.cas, self._now())
        except IdentityError as error:
            self._log.warning("agent refused", reason=str(error))
            return False
        if identity.kind is not Kind.HOST or not AGENTS.intersection(identity.roles) or identity.name != name:
            self._log.warning("agent refused", reason="not an agent's own certificate", host=str(identity), named=name)
            return False
        if lock_for(identity, self._inventory.locks, self._now()) is not None:
            self._log.warning("agent refused", reason="the host is locked", host=str(identity))
            return False
        self.identity = identity
        return True

    def host_based_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self.identity is not None  # `vouched` has checked this very certificate against the host CA

    def validate_host_based_user(self, username: str, client_host: str, client_username: str) -> bool:
        return self.identity is not None and username == client_host == self.identity.name

    def unix_server_requested(self, listen_path: str) -> asyncssh.SSHListener | bool:
        if listen_path != LISTENER or self.ready.is_set():
            self._log.warning("listener refused", path=listen_path[:256])
            return False
        self.ready.set()
        return _Dialled()
