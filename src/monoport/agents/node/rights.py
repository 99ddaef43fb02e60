"""The right to forward: asked anew for every channel, refused with an event, told in words.

Belongs here: one connection's questions and refusals. Not here: what is forwarded then (`forwarding`), how roles are
read (`access`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import asyncssh
import structlog

from monoport.access.decide import Denied, Permit
from monoport.access.forwarding import Forwarding
from monoport.agents.node.account import Account
from monoport.audit.log import Log
from monoport.audit.printable import printable
from monoport.errors import Failure, traced
from monoport.tunnel import link

DENIALS = 64  # of one connection, each of which is an event on disk

# Of each kind: what events call it, what people do, and the permission that OpenSSH certificates have for it.
KINDS = {
    Forwarding.AGENT: ("agent", "agent forwarding", "agent-forwarding"),
    Forwarding.PORT: ("port", "port forwarding", "port-forwarding"),
    Forwarding.REMOTE_PORT: ("remote_port", "remote port forwarding", "port-forwarding"),
    Forwarding.UNIX: ("unix", "forwarding to Unix sockets", "port-forwarding"),
    Forwarding.REMOTE_UNIX: ("remote_unix", "forwarding from Unix sockets", "port-forwarding"),
    Forwarding.X11: ("x11", "X11 forwarding", "X11-forwarding"),
    Forwarding.GATEWAY: ("remote_port", "listening on other addresses than loopback", "port-forwarding"),
}


class Refused(Failure):
    """Something is not allowed or not possible; the text is for the client."""


@dataclass(frozen=True, slots=True)
class User:
    """Who forwards.

    facts: what is known for events. permit: decides anew, for every channel. certified: whether the certificate has a
    permission, by OpenSSH's name without "permit-".
    """

    account: Account
    facts: Mapping[str, Any]
    permit: Callable[[], Permit | Denied]
    certified: Callable[[str], bool]


class Rights:
    """What one logged-in connection may forward.

    Args: the connection, who it is, where events go, and the log.
    """

    def __init__(
        self, client: link.ServerLink, user: User, audit: Log, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._client: link.ServerLink | None = client
        self._user, self._audit, self._log = user, audit, log
        self._denials = 0

    async def allow(self, kind: Forwarding, target: str) -> str:
        """Return the rule that allows a kind of forwarding now; raises Refused when it has been recorded."""
        _name, words, permission = KINDS[kind]
        reason = f"{words} is not allowed"
        decided = self._user.permit()
        match decided:
            case Denied(_reason, rule):
                pass
            case Permit():
                verdict = decided.options.forwarding[kind]
                certified = self._client is not None and self._user.certified(permission)
                if verdict.granted and certified:
                    return verdict.rule
                rule = f"certificate: has no permit-{permission}" if verdict.granted else verdict.rule
            case _:
                assert_never(decided)
        raise await self.refused(kind, reason, rule, target)

    async def refused(self, kind: Forwarding, reason: str, rule: str, target: str) -> Refused:
        """Record a refusal, and return it to be raised."""
        await self.denied(KINDS[kind][0], reason, rule=rule, target=target)
        return Refused(reason)

    async def denied(self, what: str, reason: str, **more: object) -> None:
        """Record that something was asked for and refused; a client that goes on and on is sent away."""
        self._denials += 1
        if self._denials > DENIALS and self._client is not None:
            reason = self.traced(f"more than {DENIALS} refused requests")
            self._client.disconnect(asyncssh.DISC_BY_APPLICATION, reason)
            return
        self._log.info("refused", what=what, reason=reason, **more)
        await self._audit.emit("session.deny", **self._user.facts, what=what, reason=reason, **more)

    def traced(self, reason: str) -> str:
        """A refusal as the client reads it, with the connection's id behind it."""
        return traced(reason, self._user.facts["connection"])

    def tell(self, what: str, reason: object) -> None:
        """Say why a request failed that SSH can only answer with no; `ssh -v` prints it (RFC 4253 section 11.3)."""
        if self._client is not None:
            text = printable(f"{what}: {self.traced(str(reason))}")
            self._client.send_debug(text, always_display=True)

    def close(self) -> None:
        """The connection is over: nothing is allowed any more, and nobody is told."""
        self._client = None
