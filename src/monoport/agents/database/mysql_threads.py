"""Which thread of the real server a client means: it was told another number than the server's own.

Belongs here: the sessions of one registered database by both numbers, and whose they are. A client that wants to stop
its statement opens another connection for it, so the numbers are looked up across sessions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from monoport.agents.database.engine import Session


@dataclass(frozen=True, slots=True)
class _Thread:
    owner: str
    user: str
    real: int


class Threads:
    """The sessions that run now."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], _Thread] = {}  # by whose it is and the number that its client was told

    @contextmanager
    def running(self, session: Session, real: int) -> Iterator[None]:
        """Know a session, and the real server's number of its thread, while the body runs."""
        key = (session.owner, session.process_id)
        self._told[key] = _Thread(session.owner, session.user, real)
        try:
            yield
        finally:
            del self._told[key]

    def real(self, session: Session, number: int) -> int | None:
        """Return the thread that `session` means by `number`, None if it is somebody else's.

        A number that no client was told is the server's own, and so is the decision, by the database user's rights:
        but for those whom the server cannot tell apart, as they share one database user.
        """
        if (own := self._told.get((session.owner, number))) is not None:
            return own.real
        for (_, told), thread in self._told.items():
            if told == number:
                return None
            if thread.real == number and thread.owner != session.owner and thread.user == session.user:
                return None
        return number
