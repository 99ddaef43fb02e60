"""The SSH server of one connection: who is let in, and which of SSH's many requests are served.

Belongs here: authentication by certificate, the permit, default deny. Not here: what may be forwarded and how
(`forwarding`), what a session does once it is allowed (`session`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import asyncssh
import structlog

from monoport.access.decide import Denied, Permit
from monoport.access.identity import Identity, IdentityError, Kind
from monoport.agents.node import account
from monoport.agents.node.account import Account, AccountError
from monoport.agents.node.forwarding import Forwards, Starter
from monoport.agents.node.recorded import Policy
from monoport.agents.node.rights import User
from monoport.agents.node.session import Host, Session
from monoport.agents.node.standing import Listener
from monoport.audit.log import Log
from monoport.audit.recorder import Recordings
from monoport.errors import traced
from monoport.tunnel import link
from monoport.tunnel.channel import ChannelSession

SESSIONS = 10  # sshd's MaxSessions


@dataclass(frozen=True, slots=True)
class Admission:
    """Someone was let in: who, as which login, by which permit."""

    identity: Identity
    permit: Permit
    account: Account


@dataclass(frozen=True, slots=True)
class Gate:
    """What decides about a login, for one connection.

    identify: reads and verifies an SSH certificate; raises IdentityError. authorize: asks for a login by the node's own
    knowledge. expected: the identity that the proxy announced.
    """

    identify: Callable[[bytes], Identity]
    authorize: Callable[[Identity, str], Permit | Denied]
    expected: Identity


class NodeLink(link.ServerLink):
    """A user's connection to the node; what asyncssh would decide by itself is asked of the server instead."""

    @property
    def server(self) -> NodeServer | None:
        """Who answers for this connection while it lasts."""
        owner = self.get_owner()
        return owner if isinstance(owner, NodeServer) else None

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        self.attempt()
        server = self.server
        if server is None or not await server.admit(username, key_data):
            return False
        return await super().validate_public_key(username, key_data, msg, signature)

    def certified(self, permission: str) -> bool:
        """Whether the user's certificate permits it (permit-agent-forwarding, permit-port-forwarding)."""
        return super().check_certificate_permission(permission)

    def check_certificate_permission(self, permission: str) -> bool:
        # what is forwarded is decided, and recorded, by `forwarding`
        return permission == "port-forwarding" or super().check_certificate_permission(permission)

    @property
    def forwards(self) -> Forwards | None:
        """What this connection forwards, once somebody is logged in."""
        return self.server.forwards if self.server is not None else None

    async def create_agent_listener(self) -> bool:
        return self.forwards is not None and await self.forwards.agent() is not None

    async def attach_x11_listener(self, chan: Any, auth_proto: bytes, auth_data: bytes, screen: int) -> str | None:
        return await self.forwards.display(chan, auth_proto, auth_data, screen) if self.forwards is not None else None

    def detach_x11_listener(self, chan: Any) -> None:
        if self.forwards is not None:
            self.forwards.end_display(chan)


class NodeServer(asyncssh.SSHServer):
    """Answers for one connection.

    Args: who decides about logins, where events go, what is known of the connection (connection, user, source, node),
    the user's address, what runs a coroutine beside the connection, the log, and where terminals are recorded.
    """

    def __init__(
        self,
        gate: Gate,
        audit: Log,
        facts: Mapping[str, Any],
        *,
        source: tuple[str, int],
        start: Starter,
        log: structlog.typing.FilteringBoundLogger,
        recordings: Recordings | None = None,
    ) -> None:
        self._recordings = recordings
        self._gate, self._audit, self._facts, self._start, self._log = gate, audit, dict(facts), start, log
        self.source = source
        self._link: NodeLink | None = None
        self._refusals: set[str] = set()  # said once, although clients ask twice for every key
        self._sessions = 0
        self.forwards: Forwards | None = None
        self.admission: Admission | None = None
        self.host: Host | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._link = conn if isinstance(conn, NodeLink) else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._link = None
        if self.host is not None:
            self.host.cut = True
        if self.forwards is not None:
            self.forwards.close()

    @property
    def sessions(self) -> int:
        """How many shells, commands and file transfers it runs."""
        return self._sessions

    async def wait_closed(self) -> None:
        """Wait until what was opened for the user is gone, after the connection."""
        if self.forwards is not None:
            await self.forwards.wait_closed()

    # authentication

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return self.admission is not None  # `admit` has checked this very certificate against the user CA

    async def admit(self, login: str, certificate: bytes) -> bool:
        """Decide about a certificate and a login; what asyncssh checks besides is the signature."""
        self.admission = None
        if not link.certifies(certificate):
            return False  # no attempt worth a record
        try:
            identity = self._gate.identify(certificate)
        except IdentityError as error:
            await self._refuse(f"certificate refused: {error}", str(error), login)
            return False
        same = (identity.kind, identity.name, identity.cluster)
        expected = self._gate.expected
        if identity.kind is not Kind.USER or same != (expected.kind, expected.name, expected.cluster):
            await self._refuse("certificate refused", f"{identity} is not {expected}, whom the proxy announced", login)
            return False
        if login not in identity.principals:
            await self._refuse(f"login {login} is not allowed", "the certificate has no such principal", login)
            return False
        decided = self._gate.authorize(identity, login)
        match decided:
            case Denied(reason, rule):
                await self._refuse(reason, rule, login)
                return False
            case Permit():
                return await self._open_account(identity, decided, login)
            case _:
                assert_never(decided)

    async def _open_account(self, identity: Identity, permit: Permit, login: str) -> bool:
        try:
            found = await asyncio.to_thread(account.find, login)
        except AccountError as error:
            await self._refuse(str(error), "the account on the node", login)
            return False
        self.admission = Admission(identity, permit, found)
        return True

    async def _refuse(self, reason: str, rule: str, login: str) -> None:
        """Record what was refused and why, once for each reason, and say the first."""
        if reason in self._refusals or self._link is None:
            return
        self._refusals.add(reason)
        self._log.warning("login refused", login=login, reason=reason, rule=rule)
        await self._audit.emit("session.deny", **self._facts, login=login, what="login", reason=reason, rule=rule)
        if self._link is not None:
            self._link.refused(self._traced(reason))

    def _traced(self, reason: str) -> str:
        return traced(reason, self._facts["connection"])

    def auth_completed(self) -> None:
        admission, made = self.admission, self._link
        assert admission is not None
        assert made is not None
        self._facts["login"] = admission.account.login
        user = User(admission.account, self._facts, self._permit, made.certified)
        self.forwards = Forwards(made, user, self._audit, self._start, self._log)
        self.host = Host(
            admission.account,
            self._audit,
            self._facts,
            self.source,
            self._start,
            self._log,
            self.forwards.environment,
            self._policy,
        )

    def _permit(self) -> Permit | Denied:
        """Decide anew by what is known now: roles change while people are logged in."""
        assert self.admission is not None
        return self._gate.authorize(self.admission.identity, self.admission.account.login)

    def _policy(self) -> Policy:
        """What is recorded of a session that begins now."""
        assert self.admission is not None
        permit = self._permit()
        options = permit.options if isinstance(permit, Permit) else self.admission.permit.options
        return Policy(options.record_session, options.record_input, self._recordings)

    # sessions

    def session_requested(self) -> Session | bool:
        if self.host is None or self.forwards is None or self._sessions >= SESSIONS:
            self._log.info("session refused", limit=SESSIONS)
            return False
        decided = self._permit()
        if isinstance(decided, Denied):
            _ = self._start(self.forwards.rights.denied("session", decided.reason, rule=decided.rule))
            return False
        self._sessions += 1
        return _Counted(self.host, self._one_session_less)

    def _one_session_less(self) -> None:
        self._sessions -= 1

    # forwarding

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Awaitable[ChannelSession] | bool:
        return self.forwards is not None and self.forwards.to_port(dest_host, dest_port)

    def unix_connection_requested(self, dest_path: str) -> Awaitable[ChannelSession] | bool:
        return self.forwards is not None and self.forwards.to_path(dest_path)

    def server_requested(self, listen_host: str, listen_port: int) -> Awaitable[Listener | bool] | bool:
        return self.forwards is not None and self.forwards.from_port(listen_host, listen_port)

    def unix_server_requested(self, listen_path: str) -> Awaitable[Listener | bool] | bool:
        return self.forwards is not None and self.forwards.from_path(listen_path)

    def tun_requested(self, unit: int | None) -> bool:
        return False

    def tap_requested(self, unit: int | None) -> bool:
        return False


class _Counted(Session):
    """A session that says when its channel is gone."""

    def __init__(self, host: Host, gone: Callable[[], object]) -> None:
        super().__init__(host)
        self._gone = gone

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        super().connection_lost(exc)
