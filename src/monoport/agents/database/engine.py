"""The shape of an engine: what speaks one database protocol to a real server on behalf of a user.

Belongs here: the values between the agent and its engines. An engine is a module with a constant
ENGINE (ours: `agents/database/<protocol>.py`), a callable that makes one for a registered database; it is found by its
description's `engine`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from monoport.access.decide import Denied
from monoport.agents.database.certificates import Issuer, Shown
from monoport.config.model import Database
from monoport.errors import Failure
from monoport.net.stream import Stream

Deny = Callable[[str, tuple[str, ...]], Denied | None]  # deny(database, features)
Entry = tuple[str, Mapping[str, Any]]  # type and fields of an audit event
Record = Callable[[Sequence[Entry]], Awaitable[None]]  # returns when all of them are durable


class Unreachable(Failure):
    """The real server cannot be used; text and `hint` are for the user, `detail` for the agent's log."""

    def __init__(self, reason: str, detail: str = "", hint: str = "") -> None:
        super().__init__(reason)
        self.detail = detail or reason
        self.hint = hint


def _undecided(_database: str, _features: tuple[str, ...]) -> Denied | None:
    return Denied("access denied", "nobody decides here")


@dataclass(slots=True)
class Session:
    """One user's session on one database, as the agent has authorised it.

    Args:
        connection: the connection's id, from the local proxy to the audit log.
        user, database: at the real server.
        certificate: the user's verified certificate, PEM.
        process_id, secret: the cancel key that the proxy gives to the client.
        record: takes audit events; the fields that every event has are filled in.
        features: what the session may be beyond an ordinary one; nothing that is not in here goes to the server.
        owner: user@cluster, whose session it is.
        deny: why the session may not go on to another database, or do something beyond an ordinary session; None if
            it may. It counts what roles say now.
    """

    connection: str
    user: str
    database: str
    certificate: str = field(repr=False)
    process_id: int
    secret: bytes = field(repr=False)
    record: Record
    features: tuple[str, ...] = ()
    owner: str = ""
    deny: Deny = _undecided
    on_end: Callable[[str], None] | None = None  # set by the engine while it can be told to end
    ended: str = ""  # why the session must end, once it must
    upstream_key: Any = None  # what the real server wants to see in a cancel request; the engine's own
    server: Stream | None = None  # a connection to the real server that `reach` has made and nobody has taken yet
    unused: Callable[[Stream], Awaitable[None]] | None = None  # set by an engine whose servers mind how that one ends

    def end(self, reason: str) -> None:
        """End the session soon: its certificate expired, its user was locked, the agent stops."""
        self.ended = self.ended or reason
        if self.on_end is not None:
            self.on_end(self.ended)

    async def shown(self, issuer: Issuer, name: str) -> Shown:
        """The certificate by which the real server of database `name` knows the session's user. Raises AuthError."""
        return await issuer.client_certificate(
            self.user, certificate=self.certificate, name=name, database=self.database, connection=self.connection
        )

    def take(self) -> Stream | None:
        """The connection that `reach` has made, once: whoever takes it owns it."""
        taken, self.server = self.server, None
        return taken

    async def give_up(self) -> None:
        """End the connection that `reach` has made, if nobody has taken it, in the way that its server wants."""
        left = self.take()
        if left is None:
            return
        try:
            if self.unused is not None:
                await self.unused(left)
        finally:
            left.abort()


class Engine(Protocol):
    """Speaks one protocol to one registered database."""

    def __init__(self, database: Database, issuer: Issuer) -> None: ...

    async def reach(self, session: Session) -> None:
        """Connect to the real server, and leave the connection in `session.server`: another agent is asked if it fails.

        Raises Unreachable; AuthError, where a server would hold a connection against us that ends before its login.
        """

    async def serve(self, session: Session, client: Stream) -> None:
        """Run `session` to its end; every failure is told to the client in its protocol."""

    async def cancel(self, session: Session) -> None:
        """Cancel what `session` runs at the real server. Raises Unreachable."""

    async def probe(self) -> str:
        """Return what the real server calls itself, "" if it does not say, if it answers. Raises Unreachable."""
