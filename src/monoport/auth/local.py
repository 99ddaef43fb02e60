"""The auth service inside a daemon: its files, its socket, its own certificates and those of the administrator.

Belongs here: putting the parts together in one data folder, and the work that goes on by itself (renewing, expiring).
For other roles of the same daemon it signs host certificates without a token: they are in this process already.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import structlog
from argon2 import PasswordHasher

from monoport.audit.outage import OnFailure, Outage
from monoport.auth import api, authorities
from monoport.auth.administration import Administration
from monoport.auth.authorities import TrustedCas
from monoport.auth.eventlog import EventLog
from monoport.auth.hosts import HostRecords
from monoport.auth.inventory import Inventory
from monoport.auth.issue import Issuer
from monoport.auth.join import Hosts
from monoport.auth.keys import Credentials, KeyPair, generate, identity_files, write_private
from monoport.auth.messages import HostCertificates
from monoport.auth.names import principals
from monoport.auth.ownership import Ownership
from monoport.auth.passwords import Passwords
from monoport.auth.recorded import RecordingService
from monoport.auth.recordings import Vault
from monoport.auth.removals import Removals
from monoport.auth.resources import Resources
from monoport.auth.server import Server
from monoport.auth.service import Parts, Service
from monoport.auth.storage.interface import Storage
from monoport.auth.storage.sqlite import SqliteStorage
from monoport.auth.tokens import Tokens
from monoport.auth.transport import Dial
from monoport.auth.users import Users
from monoport.errors import Failure
from monoport.net import memory
from monoport.net.stream import Stream
from monoport.net.unix import serve_unix
from monoport.protocols import TABLE
from monoport.protocols.description import Description
from monoport.routing.names import BOOTSTRAP

_log = structlog.get_logger()

OWN_TTL = timedelta(days=1)  # of the service's and the administrator's certificates, which are renewed every half day
TICK = 1.0  # seconds between two looks for what expired or was locked: the rule is "within 5 s"


def utc_now() -> datetime:
    """The system clock's time."""
    return datetime.now(UTC)


class LocalAuth:
    """One cluster's auth service in this process; made by `open`.

    Args:
        data_dir: where its files are; it must exist, and belong to this process alone.
        parts: the service's rooms. storage: what they keep.
    """

    def __init__(self, data_dir: Path, parts: Parts, storage: Storage) -> None:
        self.data_dir = data_dir
        self.service = Service(parts)
        self.administration = Administration(self.service)
        self.ready = asyncio.Event()
        self._parts = parts
        self._storage = storage
        self._credentials, self._renew_at = self._sign_own()
        self._vault = Vault(data_dir / "recordings", parts.now)
        self.recordings = RecordingService(self.service, self._vault)
        self.app = api.build(self.service, self.administration, self.recordings)
        self._server = Server(self.app, lambda: self._credentials, parts.now)
        self._connections: asyncio.TaskGroup | None = None
        self._admin_pair = generate()

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        cluster: str,
        *,
        now: Callable[[], datetime] = utc_now,
        hasher: PasswordHasher | None = None,
        storage: Storage | None = None,
        on_failure: OnFailure = OnFailure.REFUSE,
        protocols: Mapping[str, Description] = TABLE,
    ) -> Self:
        """Opens or makes a cluster in a data folder.

        Args:
            cluster: its name; a folder of another cluster is refused with Failure.
            now: the time. hasher: argon2id with other parameters. storage: other than auth.db.
            on_failure: what happens to logins and changes while audit events cannot be kept.
            protocols: the database protocols that databases may have.
        """
        store = storage or await SqliteStorage.open(data_dir / "auth.db", now)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(store.close)
            issuer = Issuer(await authorities.ensure(store, cluster, now), now)
            resources = Resources(store)
            events = EventLog(data_dir / "events.db")
            records = HostRecords(store, now)
            ownership = Ownership(store, records, events, cluster, now)
            removals = Removals(store, now)
            await resources.seed()
            tokens = Tokens(store, now)
            parts = Parts(
                cluster=cluster,
                users=Users(store, Passwords(now, store, hasher)),
                tokens=tokens,
                resources=resources,
                inventory=Inventory(resources, records, ownership, removals, now),
                hosts=Hosts(records, tokens, ownership, issuer, cluster),
                records=records,
                ownership=ownership,
                removals=removals,
                issuer=issuer,
                events=events,
                outage=Outage("auth", on_failure),
                now=now,
                protocols=protocols,
            )
            local = cls(data_dir, parts, store)
            undo.pop_all()
        return local

    @property
    def cas(self) -> TrustedCas:
        """The cluster's CAs."""
        return self._parts.issuer.trusted()

    @property
    def credentials(self) -> Credentials:
        """The service's own certificate and key, as they are now."""
        return self._credentials

    @property
    def pins(self) -> tuple[str, ...]:
        """What --ca-pin takes."""
        return self._parts.issuer.pins()

    @property
    def expires(self) -> datetime:
        """When the service's own certificate ends, unless it is renewed."""
        return self._renew_at + OWN_TTL / 2

    @property
    def logins(self) -> Mapping[str, int]:
        """First logins since the start: "ok" and "failed"."""
        return self.service.logins

    @property
    def outage(self) -> Outage:
        """Whether its audit events can be kept."""
        return self._parts.outage

    async def answers(self, seconds: float) -> bool:
        """Whether it serves, and its storage gives an answer within that time."""
        if not self.ready.is_set():
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._storage.get("/health")
        except (Failure, OSError, TimeoutError) as error:
            _log.error("auth storage does not answer", error=str(error) or type(error).__name__)
            return False
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the files."""
        await self._storage.close()
        await self._parts.events.close()
        await self._vault.close()

    async def run(self) -> None:
        """Serves data_dir/auth.sock and streams from `dial` and `serve` until cancelled; sets `ready` when it does."""
        self.write_admin()
        try:
            async with asyncio.TaskGroup() as group:
                self._connections = group
                group.create_task(self._tick())
                group.create_task(self.service.keep_log())
                await serve_unix(self.data_dir / "auth.sock", self._server.serve, self.ready)
        finally:
            self.ready.clear()
            self._connections = None

    async def serve(self, stream: Stream) -> None:
        """Serves one connection to its end, such as one that a proxy of this daemon passes through."""
        await self._server.serve(stream)

    def dial(self) -> Dial:
        """A dialer that leads here without a socket; the caller is verified all the same."""

        async def dial() -> Stream:
            if self._connections is None:
                raise ConnectionError("the auth service is not running")
            ours, theirs = memory.pair()
            serving = self._server.serve(theirs)
            try:
                self._connections.create_task(serving)
            except RuntimeError as error:  # the group is shutting down
                serving.close()
                raise ConnectionError("the auth service is stopping") from error
            return ours

        return dial

    async def admit(self, role: str, name: str, names: Sequence[str] = ()) -> tuple[KeyPair, HostCertificates]:
        """Key and certificates for another role of this daemon, which needs no token and takes any name.

        Args:
            role: "proxy", "node", "db", ... name: the daemon's nodename. names: of a proxy's TLS certificate.
        """
        pair = generate()
        certificates = await self._parts.hosts.admit(
            name=name, roles=(role,), names=names, public_key=pair.public, ssh_public_key=pair.ssh_public
        )
        return pair, certificates

    def write_admin(self) -> None:
        """Writes the administrator's identity, which tctl uses: whoever can read it is root of this cluster."""
        pair = self._admin_pair  # one key for the life of this process: tctl never reads a pair that does not fit
        certificates = self._host(pair, "admin", "admin", ())
        certificate, key, ssh_certificate = identity_files(self.data_dir, "admin")
        write_private(key, pair.private)
        write_private(certificate, certificates.certificate)
        write_private(ssh_certificate, certificates.ssh_certificate)
        write_private(self.data_dir / "cas.json", json.dumps(certificates.cas.to_json()))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.tick()
            except Exception as error:  # noqa: BLE001 - a full disk now must not mean that locks end nothing later
                _log.error("auth upkeep failed", error=repr(error), exc_info=error)

    async def tick(self) -> None:
        """One look for what has expired or was locked, and renewal of our own certificates when it is time."""
        await self._storage.sweep()
        self._server.sweep(await self._parts.resources.locks())
        if self._parts.now() >= self._renew_at:
            self._credentials, self._renew_at = self._sign_own()
            self.write_admin()

    def _sign_own(self) -> tuple[Credentials, datetime]:
        pair = generate()
        # The second name is for hosts that join by the service's own port: they have the pin of this certificate's CA.
        certificates = self._host(pair, "auth", "auth", (self._parts.cluster, BOOTSTRAP))
        credentials = Credentials(certificates.certificate, pair.private, certificates.cas)
        return credentials, self._parts.now() + OWN_TTL / 2

    def _host(self, pair: KeyPair, role: str, name: str, names: Sequence[str]) -> HostCertificates:
        host_id = f"{role}.local"  # hosts that join have a UUID; this is how the audit log shows tctl
        return self._parts.issuer.host(
            host_id,
            roles=(role,),
            principals=principals(host_id, name, self._parts.cluster),
            names=names,
            public_key=pair.public,
            ssh_public_key=pair.ssh_public,
            ttl=OWN_TTL,
        )
