"""What a client's commands do, as values, and who decides about those that are held back.

Belongs here: the values, and what a judge is asked. Reading them from packets is in `commands`; what the audit log
makes of them, and the judge, live in the agent.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from monoport.wire.statement import Statement


class Judge(Protocol):
    """Who decides what a session may do besides what it was let in for."""

    def database(self, name: str) -> str:
        """Return why the session may not go to this database, "" if it may."""

    def feature(self, name: str) -> str:
        """Return why the session may not do this, "" if it may."""

    def thread(self, number: int) -> int | None:
        """Return the real server's number of a thread that the client calls `number`, None if it may not stop it."""


@dataclass(frozen=True, slots=True)
class Query:
    """One text, of one statement or several."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class Prepare:
    """A statement is prepared, to be run later by its number."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class Run:
    """A prepared statement is run; None if it is not known which."""

    statement: Statement | None
    number: int
    parameters: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """A command that is no statement."""

    name: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that did not reach the server."""

    reason: str
    name: str
    statement: Statement | None = None


@dataclass(frozen=True, slots=True)
class SendFile:
    """The client begins to send a file of its own."""


Action: TypeAlias = Query | Prepare | Run | Order | Refused | SendFile
