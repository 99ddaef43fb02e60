"""A node whose sessions the host's own sshd serves: the agent only relays to it, and answers what sshd asks.

Belongs here: the relay, its lease, and sshd's question who may log in (AuthorizedPrincipalsCommand of sshd_config(5)).
Not here: the files that sshd reads (`daemon.sshd`), the program that sshd starts (`asking`).

The user's SSH ends in sshd, so neither proxy nor agent sees which login is asked for, and sshd knows neither roles nor
locks. So sshd asks here with the certificate that it was shown: it must be good, of a user for whom the proxy has a
connection open through this agent, and allowed that login on this node by the agent's own knowledge.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import assert_never

import structlog

from monoport.access.decide import UNACCEPTED, Denied, Permit
from monoport.access.identity import Identity, IdentityError, Kind
from monoport.access.lease import Lease, Leases
from monoport.access.resources import Node as Listed
from monoport.access.resources import Recording
from monoport.agents.node.agent import Knowledge, Node
from monoport.audit.log import Log
from monoport.audit.printable import printable
from monoport.net import sockets
from monoport.net.meter import Meter
from monoport.net.relay import relay
from monoport.net.stream import Stream
from monoport.tunnel import dial, link
from monoport.tunnel.dial import DialRefused
from monoport.tunnel.preface import Kind as Wanted
from monoport.tunnel.preface import Preface

CONNECT_SECONDS = 5.0  # sshd is on this very host
QUESTION = 65_536  # bytes of one question: a login and a certificate, which is far smaller
QUESTION_SECONDS = 5.0  # the program that asks has its whole question at hand

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Relay:
    """One connection to sshd: whose, what is known of it, and the login once sshd has been told that it may."""

    identity: Identity
    facts: dict[str, str]
    stream: Stream
    login: str = ""
    ended: str = ""
    leases: list[Lease] = field(default_factory=list)

    def end(self, reason: str) -> None:
        """End it at once; called when certificate, lock or permit say so."""
        self.ended = reason
        self.stream.abort()


class OpensshNode(Node):
    """Relays one node's connections to its sshd.

    Args:
        node, host, cache, audit, now: as for `Node`.
        sshd: its address and port, which is all that is ever dialled.
        leases: swept by the daemon; they end what has expired or is locked.
    """

    def __init__(
        self,
        node: Callable[[], Listed],
        host: Callable[[], link.HostKey],
        cache: Knowledge,
        audit: Log,
        *,
        sshd: tuple[str, int],
        leases: Leases,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(node, host, cache, audit, now=now)
        self._sshd, self._leases = sshd, leases
        self._relays: dict[_Relay, None] = {}

    @property
    def connections(self) -> int:
        return len(self._relays)

    @property
    def sessions(self) -> int:
        return sum(1 for one in self._relays if one.login)

    async def serve(self, preface: Preface, stream: Stream) -> None:
        """Relay one dialled stream to sshd; raises DialRefused before anything is accepted."""
        node = self._node()
        if preface.kind is not Wanted.SSH or preface.target != node.metadata.name:
            raise DialRefused(dial.NOT_SERVED, "this node does not serve that")
        identity = await self._announced(preface, node)
        try:
            sshd = await sockets.connect(*self._sshd, CONNECT_SECONDS)
        except OSError as error:
            _log.warning("sshd does not answer", connection=preface.connection, error=str(error))
            raise DialRefused(dial.UNAVAILABLE, f'sshd of node "{node.spec.hostname}" does not answer') from error
        facts = {
            "connection": preface.connection,
            "user": str(identity),
            "source": preface.source,
            "node": node.metadata.name,
            "hostname": node.spec.hostname,
        }
        one = _Relay(identity, facts, stream)
        async with sshd:
            await dial.accept(stream)
            self._relays[one] = None
            one.leases.append(
                self._leases.add(identity, identity.expires, one.end, nodes=(node.metadata.name, node.spec.hostname))
            )
            try:
                await self._relay(one, sshd)
            finally:
                del self._relays[one]
                for lease in one.leases:
                    lease.close()

    async def _relay(self, one: _Relay, sshd: Stream) -> None:
        began, meter = asyncio.get_running_loop().time(), Meter()
        try:
            await relay(one.stream, sshd, meter=meter)
        except (ConnectionError, TimeoutError) as error:
            one.ended = one.ended or str(error) or type(error).__name__
        finally:
            if one.login:
                seconds = round(asyncio.get_running_loop().time() - began, 3)
                sizes = {"bytes_in": meter.bytes_in, "bytes_out": meter.bytes_out}
                await self._audit.emit(
                    "session.end", **one.facts, login=one.login, seconds=seconds, reason=one.ended, **sizes
                )

    async def answer(self, stream: Stream) -> None:
        """Answer one question of sshd, `LOGIN BASE64`: with the login on a line if it is allowed, else with no name."""
        async with asyncio.timeout(QUESTION_SECONDS):
            seen = b""
            while not seen.endswith(b"\n"):
                more = await stream.read(QUESTION - len(seen)) if len(seen) < QUESTION else b""
                if not more:
                    raise ConnectionError(f"no question in {len(seen)} bytes, limit {QUESTION}")
                seen += more
            login, _, certificate = seen.decode("utf-8", "replace").strip().partition(" ")
            allowed = await self.admits(login, certificate)
            await stream.write(f"{login}\n".encode() if allowed else b"\n")
            stream.close()
            await stream.wait_closed()

    async def admits(self, login: str, certificate: str) -> bool:
        """Decide whether sshd may let this login in.

        Args: the account that is asked for, and the OpenSSH certificate that sshd was shown, in base64.
        """
        node = self._node()
        try:
            identity = self._identify(base64.b64decode(certificate, validate=True))
        except (IdentityError, binascii.Error) as error:
            return await self._refuse(self._facts(node), login, f"certificate refused: {error}", UNACCEPTED)
        if identity.kind is not Kind.USER:
            reason = f"{identity} is a host, not a user"
            return await self._refuse(self._facts(node, identity), login, reason, UNACCEPTED)
        mine = [one for one in self._relays if str(one.identity) == str(identity)]
        one = next((one for one in mine if one.login in ("", login)), None)
        if one is None:
            reason = f"no connection of {identity} through the proxy is waiting to log in"
            return await self._refuse(self._facts(node, identity), login, reason, "connection: none is waiting")
        decided = self._authorize(node, identity, login)
        match decided:
            case Denied(reason, rule):
                return await self._refuse(one.facts, login, reason, rule)
            case Permit(options=options) if options.record_session is Recording.STRICT:
                reason = "sessions must be recorded, and this host's own sshd records none"
                rule = f"role {options.recorded_by}: options.record_session is strict"
                return await self._refuse(one.facts, login, reason, rule)
            case Permit():
                await self._admit(one, identity, login, decided)
                return True
            case _:
                assert_never(decided)

    async def _admit(self, one: _Relay, identity: Identity, login: str, permit: Permit) -> None:
        """Lease what sshd is about to serve; sshd asks twice for one login, of which the first is recorded."""
        if one.login:
            return
        one.login = login
        names = (one.facts["node"], one.facts["hostname"])
        one.leases.append(self._leases.add(identity, permit.until, one.end, nodes=names, login=login))
        self.logins += 1
        await self._audit.emit("session.start", **one.facts, login=login, kind="openssh")

    @staticmethod
    def _facts(node: Listed, identity: Identity | None = None) -> dict[str, str]:
        user = "" if identity is None else str(identity)
        return {"user": user, "node": node.metadata.name, "hostname": node.spec.hostname}

    async def _refuse(self, facts: dict[str, str], login: str, reason: str, rule: str) -> bool:
        known = {name: facts[name] for name in ("connection", "source", "user") if name in facts}
        _log.info("sshd may not let in", **known, login=printable(login), reason=reason, rule=rule)
        await self._audit.emit("session.deny", **facts, what="login", login=login, reason=reason, rule=rule)
        return False
