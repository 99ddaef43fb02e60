"""What the contracts must know of PostgreSQL: how a client begins, and a server that lets the agent's user in."""

from monoport.wire.postgres.messages import StartupMessage

from ...scenarios.psql import Server  # noqa: TID252 # tests are no package

__all__ = ["Server", "opening"]


def opening(user: str, database: str) -> bytes:
    """All that a client says before it waits for the server."""
    return StartupMessage(0, {"user": user, "database": database}).encode()
